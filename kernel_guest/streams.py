"""A connected socket: its first frame, and as asyncio streams that let go of it in time."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

from kernel_guest.frames import Frame, FrameError, decode

_FLUSH_SECONDS = 5.0
_MAX_OPEN = 64 * 1024


@contextlib.asynccontextmanager
async def streams_of(connection: socket.socket) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection as streams, which have let go of it when the block is left.

    Else the loop would still listen for them on a descriptor whose number is another's by then.
    """
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.CancelledError):
            writer.transport.abort()
            # Its last step is the loop's next one.
            await asyncio.sleep(0)


async def first_frame(connection: socket.socket) -> Frame:
    """The frame that a stream begins with; nothing past it is read. Raises FrameError, ConnectionResetError."""
    length = int.from_bytes(await _exactly(connection, 4), "big")
    if length > _MAX_OPEN:
        raise FrameError("the first frame is too long")
    return decode(await _exactly(connection, length))


async def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not piece:
            raise ConnectionResetError("the stream ended before it was opened")
        data += piece
    return data
