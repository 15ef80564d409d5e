"""Images for a model, within what clients take; those that are more are made smaller, in the sandbox.

No image is decoded here: it comes from the guest, and decoders are large programs in C. The guest has Pillow wherever
it has matplotlib; what it gives back is held to the same limits. SVG is handed on as text.

The limits: a client takes 1 MiB in one answer (Claude Desktop), a model 2,000 pixels a side where there are many images
(https://docs.anthropic.com/en/docs/build-with-claude/vision).
"""

import asyncio
import base64
import binascii
import shlex
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from mcp_types import ImageContent

from interpreter.client import AsyncSession
from interpreter.errors import InterpreterError
from interpreter.mcp.text import image_of

MAX_ENCODED: Final = 900_000
"""Characters of base64 in one answer, of all images together."""
MAX_EDGE: Final = 2_000
"""Pixels of the longer side."""
_SCALED_EDGE: Final = 1_568
_MAX_IMAGES: Final = 10
_MAX_SEGMENTS: Final = 10_000
"""Parts of a JPEG file that are looked through for its size."""
_SECONDS: Final = 60.0
"""How long all images of an answer may take to be made smaller."""
BLANKS: Final = dict.fromkeys(map(ord, " \t\r\n"))
"""What base64 is read without."""
_SHRINK: Final = """
import base64, io, os, sys

path, budget, edge = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    from PIL import Image
    image = Image.open(path)
    image.draft("RGB", (edge, edge))
    image = image.convert("RGBA")
finally:
    if sys.argv[4] == "remove":
        os.unlink(path)
image.thumbnail((edge, edge))
white = Image.new("RGB", image.size, "white")
white.paste(image, mask=image.getchannel("A"))

def packed(kind, **options):
    buffer = io.BytesIO()
    white.save(buffer, kind, **options)
    return buffer.getvalue()

data = packed("PNG", optimize=True)
for quality in (85, 60):
    if len(data) > budget:
        data = packed("JPEG", quality=quality)
while len(data) > budget and min(white.size) > 16:
    white.thumbnail((white.width * 7 // 10, white.height * 7 // 10))
    data = packed("JPEG", quality=75)
sys.stdout.write(base64.b64encode(data).decode())
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as far as its head tells."""

    mime_type: str
    data: bytes
    width: int
    height: int

    @property
    def encoded_size(self) -> int:
        """Characters of its base64."""
        return (len(self.data) + 2) // 3 * 4

    @property
    def is_shown(self) -> bool:
        """Whether its sides are no longer than clients take."""
        return max(self.width, self.height) <= MAX_EDGE

    def block(self) -> ImageContent:
        """As an answer has it."""
        return ImageContent(type="image", data=base64.b64encode(self.data).decode(), mime_type=self.mime_type)

    def __str__(self) -> str:
        return f"{self.width} x {self.height} pixels"


def picture_of(data: bytes) -> Picture | None:
    """The image in these bytes; None when they are none that clients show."""
    try:
        mime_type, width, height = _head(data)
    except (struct.error, IndexError, ValueError):
        return None
    return Picture(mime_type, data, width, height) if width > 0 and height > 0 else None


async def images_of(
    session: AsyncSession, outputs: Sequence[Mapping[str, Any]]
) -> tuple[list[ImageContent], list[str]]:
    """The images among outputs, as they are or made smaller, and notes on what became of them."""
    found = [image for output in outputs if (image := image_of(output.get("data") or {})) is not None]
    notes = [f"[{len(found) - _MAX_IMAGES} more images were left out]"] if len(found) > _MAX_IMAGES else []
    pictures: list[Picture] = []
    for mime_type, encoded in found[:_MAX_IMAGES]:
        picture = await asyncio.to_thread(_decoded, encoded)
        if picture is None:
            notes.append(f"[An output that says it is {mime_type} is no image that can be read; it was left out.]")
        else:
            pictures.append(picture)
    budget = _budget(pictures)
    blocks: list[ImageContent] = []
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SECONDS
    for picture in pictures:
        if picture.is_shown and picture.encoded_size <= budget:
            blocks.append(picture.block())
        else:
            smaller = await _uploaded_and_shrunk(session, picture, budget, deadline - loop.time())
            _tell(picture, smaller, blocks, notes)
    return blocks, notes


async def image_of_file(session: AsyncSession, path: str, data: bytes | None) -> tuple[list[ImageContent], list[str]]:
    """An image file of the session, as it is when its ``data`` is given and no more than clients take."""
    picture = picture_of(data) if data is not None else None
    if picture is not None and picture.is_shown and picture.encoded_size <= MAX_ENCODED:
        return [picture.block()], []
    blocks: list[ImageContent] = []
    notes: list[str] = []
    if picture is not None or data is None:
        _tell(picture, await _shrunk(session, path, MAX_ENCODED, _SECONDS, remove=False), blocks, notes)
    return blocks, notes


def _tell(picture: Picture | None, smaller: Picture | None, blocks: list[ImageContent], notes: list[str]) -> None:
    what = f"An image of {picture}, {len(picture.data):,} bytes," if picture else "The image"
    if smaller is None:
        notes.append(
            f"[{what} is more than can be shown, and could not be made smaller: that takes Pillow in the sandbox, and "
            "time. Make it smaller, in pixels for one, and show it again.]"
        )
    else:
        notes.append(f"[{what} was made smaller to be shown: {smaller}.]")
        blocks.append(smaller.block())


def _budget(pictures: Sequence[Picture]) -> int:
    """Characters that each image may take: what small ones leave is for the others."""
    left, sizes = MAX_ENCODED, sorted(picture.encoded_size for picture in pictures)
    for done, size in enumerate(sizes):
        share = left // (len(sizes) - done)
        if size > share:
            return share
        left -= size
    return MAX_ENCODED


async def _uploaded_and_shrunk(session: AsyncSession, picture: Picture, budget: int, seconds: float) -> Picture | None:
    if seconds <= 0:
        return None
    path = f"/tmp/{uuid4().hex}"  # noqa: S108  (in the guest)
    try:
        await session.upload(picture.data, path)
    except InterpreterError:
        return None
    return await _shrunk(session, path, budget, seconds, remove=True)


async def _shrunk(session: AsyncSession, path: str, budget: int, seconds: float, *, remove: bool) -> Picture | None:
    arguments = [path, str(budget // 4 * 3), str(_SCALED_EDGE), "remove" if remove else "keep"]
    try:
        result = await session.run(shlex.join(["python3", "-P", "-c", _SHRINK, *arguments]), timeout=seconds)
    except InterpreterError:
        return None
    # From the guest, like all else: it need not be what was asked for.
    made = await asyncio.to_thread(_decoded, result.stdout) if len(result.stdout) <= budget else None
    return made if made is not None and made.is_shown else None


def _decoded(encoded: str) -> Picture | None:
    try:
        return picture_of(base64.b64decode(encoded.translate(BLANKS), validate=True))
    except (binascii.Error, ValueError):
        return None


def _head(data: bytes) -> tuple[str, int, int]:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        return "image/png", *struct.unpack_from(">II", data, 16)
    if data[:6] in {b"GIF87a", b"GIF89a"}:
        return "image/gif", *struct.unpack_from("<HH", data, 6)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp", *_webp_size(data)
    if data[:2] == b"\xff\xd8":
        return "image/jpeg", *_jpeg_size(data)
    raise ValueError("no image")


def _webp_size(data: bytes) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
        case _:
            raise ValueError("no image")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_MAX_SEGMENTS):
        mark, kind, size = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            raise ValueError("no image")
        if kind == 0xFF:
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + max(size, 2)
    raise ValueError("no image")
