"""Frames over a stream: a whole one comes back; an end between frames is None; anything else is GuestMisbehaved."""

import asyncio
import socket
from collections.abc import AsyncGenerator

import pytest

from interpreter.errors import GuestMisbehaved, GuestRefused
from interpreter.kernel.framing import FrameStream
from kernel_guest.frames import Frame, Kind, encode

Pair = tuple[FrameStream, asyncio.StreamWriter]


@pytest.fixture
async def pair() -> AsyncGenerator[Pair]:
    ours, theirs = socket.socketpair()
    stream = FrameStream(*await asyncio.open_connection(sock=ours))
    _, writer = await asyncio.open_connection(sock=theirs)
    yield stream, writer
    writer.close()
    stream.writer.close()


async def test_a_frame_comes_back(pair: Pair) -> None:
    pair[1].write(encode(Frame(Kind.EVENT, {"x": b"1"})))
    assert await pair[0].receive() == Frame(Kind.EVENT, {"x": b"1"})


async def test_the_end_between_frames_is_none(pair: Pair) -> None:
    pair[1].close()
    assert await pair[0].receive() is None


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\x09abc", b"\xff\xff\xff\xff", b"\0\0\0\x03abc"])
async def test_what_is_no_frame_is_guest_misbehaved(pair: Pair, data: bytes) -> None:
    pair[1].write(data)
    pair[1].close()
    with pytest.raises(GuestMisbehaved):
        await pair[0].receive()


async def test_a_refusal_carries_the_guests_code(pair: Pair) -> None:
    pair[1].write(encode(Frame(Kind.ERROR, {"code": "not_found", "message": "no such file"})))
    with pytest.raises(GuestRefused, match="no such file") as refusal:
        await pair[0].answer()
    assert refusal.value.guest_code == "not_found"


async def test_a_frame_nested_too_deep_is_guest_misbehaved(pair: Pair) -> None:
    payload = b"\x93\x01\xa5event\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"
    pair[1].write(len(payload).to_bytes(4, "big") + payload)
    with pytest.raises(GuestMisbehaved):
        await pair[0].receive()


async def test_a_refusal_of_a_wrong_form_is_still_a_refusal(pair: Pair) -> None:
    pair[1].write(encode(Frame(Kind.ERROR, {"code": ["x"], "message": {"y": 1}})))
    with pytest.raises(GuestRefused) as refusal:
        await pair[0].answer()
    assert refusal.value.guest_code == "unknown"
