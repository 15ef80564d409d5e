"""A connected socket as asyncio streams that let go of it in time."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

_FLUSH_SECONDS = 5.0


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
