"""Frames: what is encoded comes back, however the bytes are cut; what is no frame gives FrameError and no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_guest.frames import Frame, FrameDecoder, FrameError, Kind, decode, encode

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20) | st.binary(max_size=200),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
frames = st.builds(Frame, st.sampled_from(Kind), st.dictionaries(st.text(max_size=10), values, max_size=4))


@given(st.lists(frames, max_size=5), st.data())
def test_frames_come_back_however_the_bytes_are_cut(sent: list[Frame], data: st.DataObject) -> None:
    wire = b"".join(encode(frame) for frame in sent)
    decoder, received, rest = FrameDecoder(), list[Frame](), wire
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        received += decoder.feed(rest[:cut])
        rest = rest[cut:]
    assert received == sent
    assert decoder.pending == 0


@given(st.binary(max_size=300))
def test_garbage_gives_frame_error_and_nothing_else(payload: bytes) -> None:
    try:
        decode(payload)
    except FrameError:
        return


@given(frames, st.integers(0, 10_000), st.integers(1, 255))
def test_an_altered_byte_never_gives_more_than_frame_error(frame: Frame, place: int, flip: int) -> None:
    wire = bytearray(encode(frame))
    wire[place % len(wire)] ^= flip
    try:
        list(FrameDecoder(limit=1_000_000).feed(wire))
    except FrameError:
        return


def test_a_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        list(FrameDecoder(limit=10).feed((11).to_bytes(4, "big")))


def test_another_version_is_named() -> None:
    wire = encode(Frame(Kind.OK)).replace(b"\x93\x01", b"\x93\x07")
    with pytest.raises(FrameError, match="version 7"):
        list(FrameDecoder().feed(wire))


@pytest.mark.parametrize("body", [{"parts": [b""] * 100_000}, {"parts": [[b""] * 1000] * 100}])
def test_a_frame_of_far_more_items_than_any_has_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(FrameError, match="not msgpack"):
        decode(encode(Frame(Kind.MESSAGE, body))[4:])


def test_a_frame_may_be_long_and_have_many_buffers() -> None:
    frame = Frame(Kind.MESSAGE, {"channel": "iopub", "parts": [bytes(1_000_000), *[b"x"] * 10_000]})
    assert decode(encode(frame)[4:]) == frame
