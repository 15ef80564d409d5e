"""Images for a model: what their heads tell, and how the room of an answer is shared. Without a service."""

import base64
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.mcp.images import MAX_ENCODED, _budget, picture_of

GIF = b"GIF89a" + struct.pack("<HH", 3, 2) + bytes(9)
WEBP = b"RIFF" + bytes(4) + b"WEBP"
JPEG = (
    b"\xff\xd8\xff\xe1" + struct.pack(">H", 6) + b"Exif\xff\xff\xc0" + struct.pack(">HBHHB", 11, 8, 2, 3, 1) + bytes(3)
)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "mime_type"),
    [
        (png(3, 2), "image/png"),
        (GIF, "image/gif"),
        (JPEG, "image/jpeg"),
        (WEBP + b"VP8X" + bytes(8) + b"\x02\0\0\x01\0\0", "image/webp"),
        (WEBP + b"VP8L" + bytes(5) + struct.pack("<I", 2 | 1 << 14), "image/webp"),
        (WEBP + b"VP8 " + bytes(10) + struct.pack("<HH", 3, 2), "image/webp"),
    ],
    ids=["png", "gif", "jpeg", "webp", "webp without loss", "webp with loss"],
)
def test_the_size_of_an_image_is_read_from_its_head(data: bytes, mime_type: str) -> None:
    picture = picture_of(data)
    assert picture is not None
    assert (picture.mime_type, picture.width, picture.height) == (mime_type, 3, 2)
    assert base64.b64decode(picture.block().data) == data
    assert len(picture.block().data) == picture.encoded_size


@pytest.mark.parametrize(
    "data",
    [b"", b"\x89PNG\r\n\x1a\n", png(0, 1), b"GIF89a", b"\xff\xd8" + b"\xff" * 1_000_000, WEBP + b"VP9 ", b"<svg/>"],
    ids=["nothing", "cut", "empty", "cut gif", "jpeg without end", "unknown webp", "svg"],
)
def test_what_is_no_image_is_none(data: bytes) -> None:
    assert picture_of(data) is None


@given(st.binary(max_size=100), st.sampled_from([b"", png(1, 1), GIF, JPEG, WEBP, WEBP + b"VP8X", b"\xff\xd8\xff"]))
def test_any_bytes_are_looked_at(data: bytes, head: bytes) -> None:
    picture_of(head[: random.randint(0, len(head))] + data)
    picture_of(head + data)


@given(st.lists(st.integers(1, 2 * MAX_ENCODED), max_size=10))
def test_images_share_the_room_and_small_ones_stay_as_they_are(sizes: list[int]) -> None:
    pictures = [picture for size in sizes if (picture := picture_of(png(1, 1, bytes(size // 4 * 3)))) is not None]
    budget = _budget(pictures)
    assert sum(min(picture.encoded_size, budget) for picture in pictures) <= MAX_ENCODED
    if sum(picture.encoded_size for picture in pictures) <= MAX_ENCODED:
        assert all(picture.encoded_size <= budget for picture in pictures)
