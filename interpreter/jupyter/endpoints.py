"""Where a kernel's clients connect: five addresses, as a connection file has them, and what listens on them."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreter.errors import HostError
from interpreter.kernel.splicing import AsyncioStream, ByteStream
from kernel_guest.frames import CHANNELS

SIGNATURE_SCHEME: Final = "hmac-sha256"
MAX_UNIX_PATH: Final = 107
"""Bytes that the path of a unix socket may have."""
_BUFFERED: Final = 512 * 1024
"""Bytes of a connection that are read ahead, about half of what asyncio then holds at most."""

Port = Annotated[int, Field(ge=1, le=65535)]
OnConnection = Callable[[str, ByteStream], Awaitable[None]]
"""Serves a connection to a channel; it is closed after that."""


class Endpoints(BaseModel):
    """The addresses in a connection file. With ``ipc`` the address of a port is the path ``{ip}-{port}``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    transport: Literal["tcp", "ipc"] = "tcp"
    ip: str
    shell_port: Port
    iopub_port: Port
    stdin_port: Port
    control_port: Port
    hb_port: Port

    def port(self, channel: str) -> int:
        """The port of a channel."""
        return getattr(self, f"{channel}_port")

    def path(self, channel: str) -> Path:
        """The unix socket of a channel, with ``ipc``."""
        return Path(f"{self.ip}-{self.port(channel)}")


def endpoints_in(folder: Path) -> Endpoints:
    """Endpoints that are unix sockets in a folder."""
    ports: dict[str, Any] = {f"{channel}_port": number for number, channel in enumerate(CHANNELS, start=1)}
    return Endpoints(transport="ipc", ip=str(folder / "kernel"), **ports)


class Listeners:
    """Listens on endpoints, for as long as there are clients; what is behind them may change meanwhile."""

    def __init__(self, endpoints: Endpoints, on_connection: OnConnection) -> None:
        self._endpoints = endpoints
        self._on_connection = on_connection
        self._servers: dict[str, asyncio.Server] = {}
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on every endpoint; on one whose socket file was removed meanwhile, anew. Raises HostError."""
        for channel in CHANNELS:
            server = self._servers.get(channel)
            if server is not None:
                if self._endpoints.transport == "tcp" or self._endpoints.path(channel).is_socket():
                    continue
                server.close()
            self._servers[channel] = await self._listen(channel)

    def drop(self) -> None:
        """End all connections; clients connect anew by themselves."""
        for task in self._connections:
            task.cancel()

    async def close(self) -> None:
        """Listen no more, and end all connections."""
        for channel, server in self._servers.items():
            server.close()
            if self._endpoints.transport == "ipc":
                self._endpoints.path(channel).unlink(missing_ok=True)
        self._servers.clear()
        self.drop()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _listen(self, channel: str) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
            try:
                # Cancelled, it is dropped on purpose; that is no news to the server.
                with contextlib.suppress(asyncio.CancelledError):
                    await self._on_connection(channel, AsyncioStream(reader, writer))
            finally:
                writer.close()

        where = self._endpoints
        try:
            if where.transport == "ipc":
                return await asyncio.start_unix_server(connected, where.path(channel), limit=_BUFFERED)
            ip = None if where.ip == "*" else where.ip
            return await asyncio.start_server(connected, ip, where.port(channel), limit=_BUFFERED)
        except OSError as error:
            address = where.path(channel) if where.transport == "ipc" else f"{where.ip}:{where.port(channel)}"
            raise HostError(f"{address} cannot be listened on: {error.strerror or error}") from error
