"""Files with an agent of the version before: it gives a file as a whole, knows UTF-8 alone, always overwrites."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from interpreter.engine.files import SessionFiles
from interpreter.errors import FileExists, GuestRefused
from interpreter.kernel import versions
from interpreter.kernel.control import AgentControl
from interpreter.kernel.files import get_file, put_file
from interpreter.kernel.framing import FrameStream
from kernel_guest.frames import AGENT_VERSION, Frame, Kind, encode

BEFORE = AGENT_VERSION - 1
CONTENT = bytes(range(200))
ABOUT = {"size": len(CONTENT), "mode": 0o644, "mtime_ns": 1}

pytestmark = pytest.mark.skipif(BEFORE not in versions.SPOKEN, reason="that version is not spoken with any more")


async def connected() -> tuple[FrameStream, asyncio.StreamWriter, asyncio.StreamReader]:
    """The host's end as frames, and the guest's."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    return FrameStream(*await asyncio.open_connection(sock=ours)), writer, reader


async def refused_connection(_: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    pytest.fail("the guest was asked")


async def test_a_file_is_given_as_a_whole_and_not_asked_for() -> None:
    stream, guest, asked = await connected()
    guest.write(encode(Frame(Kind.OK, ABOUT)) + CONTENT)

    async def connect(_: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return stream.reader, stream.writer

    async with get_file(connect, "x", version=BEFORE) as file:
        assert (file.has_parts, file.ctime_ns) == (False, None)
        assert b"".join([piece async for piece in file.pieces]) == CONTENT
    request = await asked.read()
    assert len(request) == 4 + int.from_bytes(request[:4], "big"), "more than the first frame was sent"
    guest.close()


async def test_a_name_that_it_does_not_know_is_refused_before_it_is_asked() -> None:
    with pytest.raises(GuestRefused, match="before the service was upgraded"):
        async with get_file(refused_connection, "\udcff", version=BEFORE):
            pytest.fail("it was opened")

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x"

    with pytest.raises(GuestRefused, match="before the service was upgraded"):
        await put_file(refused_connection, "\udcff", pieces(), version=BEFORE)


async def test_what_must_not_be_overwritten_is_looked_for_first() -> None:
    stream, guest, asked = await connected()
    control = AgentControl(stream, BEFORE, lambda event: None)
    receiving = asyncio.create_task(control.receive())
    entry = {"name": "x", "type": "file", "size": 1, "mode": 0o644, "mtime_ns": 1, "target": None}
    uploading = asyncio.create_task(SessionFiles(control, refused_connection).upload(b"x", "x", overwrite=False))
    assert b"describe" in await asked.read(1000)
    guest.write(encode(Frame(Kind.OK, {"id": 1, **entry})))
    with pytest.raises(FileExists):
        await uploading
    guest.close()
    await receiving
    stream.writer.close()
