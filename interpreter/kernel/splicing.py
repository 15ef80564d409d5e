"""Raw bytes, both ways, between a client's connection and one of a kernel's ZeroMQ sockets.

Nothing is parsed: greeting, identities, subscriptions, signatures and heartbeats pass from end to end, as if the client
had connected to the kernel itself. What one side does not take, the other side does not send.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Protocol

from interpreter.kernel.channels import MAIN
from interpreter.kernel.framing import Connect, open_service

PIECE: Final = 256 * 1024
"""Bytes that are read at once."""


class ByteStream(Protocol):
    """One end of what is spliced. Both methods raise OSError when the connection broke."""

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting while the other side takes no more."""
        ...


class AsyncioStream:
    """A stream of asyncio's as one end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        """See `ByteStream`."""
        return await self._reader.read(PIECE)

    async def write(self, data: bytes) -> None:
        """See `ByteStream`."""
        self._writer.write(data)
        await self._writer.drain()


@asynccontextmanager
async def open_splice(connect: Connect, channel: str, context: str = MAIN) -> AsyncGenerator[ByteStream]:
    """A new connection to the socket of a kernel's channel. Raises GuestRefused, VsockError."""
    async with open_service(connect, "splice", channel=channel, context=context) as stream:
        yield AsyncioStream(stream.reader, stream.writer)


async def splice(one: ByteStream, other: ByteStream) -> None:
    """Copy until either side has ended; what was read by then is written. Who opened them closes them."""
    # ZeroMQ closes a connection as a whole, never one direction of it.
    copies = {asyncio.create_task(_copy(one, other)), asyncio.create_task(_copy(other, one))}
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.wait(copies)


async def _copy(source: ByteStream, target: ByteStream) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read():
            await target.write(data)
