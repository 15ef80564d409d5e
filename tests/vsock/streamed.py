"""The device with asyncio's streams on it: how tests talk to a guest through it, in one process."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from interpreter.vsock.backend import VsockDevice

from .guest import GUEST_CID

READ_LIMIT = 256 * 1024


class Opened(asyncio.StreamReaderProtocol):
    """Tells when the stream is there, or that it is refused."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader(limit=READ_LIMIT)
        super().__init__(self.reader)
        self.opened: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self.opened.set_result(asyncio.StreamWriter(transport, self, self.reader, loop))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("it was given up"))
            return
        super().connection_lost(exc)


class StreamedDevice(VsockDevice):
    """A device in this process, for a guest whose memory is this process's or another's."""

    def __init__(self, sock: socket.socket, *, pid: int, window: int = 256 * 1024) -> None:
        super().__init__(sock, pid=pid, guest_cid=GUEST_CID, window=window, on_request=self._take)
        self.queues: dict[int, asyncio.Queue[Opened]] = {}

    async def dial(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        opened = Opened()
        self.connect(port, opened)
        return opened.reader, await opened.opened

    @asynccontextmanager
    async def listen(self, port: int) -> AsyncGenerator[asyncio.Queue[Opened]]:
        queue = self.queues[port] = asyncio.Queue()
        self.protocol.listening.add(port)
        yield queue
        del self.queues[port]
        self.protocol.listening.discard(port)

    def _take(self, port: int, peer: int) -> asyncio.Protocol | None:
        if port not in self.queues:
            return None
        opened = Opened()
        self.queues[port].put_nowait(opened)
        return opened
