"""How the agent meets the host and parts from it: the doorbell, the stream that it dials, the port it listens on."""

import asyncio
import contextlib
import os
import socket
import tty
from collections.abc import Callable, Mapping

from kernel_guest import system
from kernel_guest.agent import Agent
from kernel_guest.frames import AGENT_PORT, CONTROL_PORT, HOST_CID

_BACKLOG = 128
_BUFFER = 2 * 1024 * 1024


MEET = b"!"
"""The host rings this when it has plugged in a vsock device."""
PART = b"-"
"""The host rings this when nobody is behind the device any more; the agent gives it up and says "parted"."""


class Doorbell:
    """The second serial port: lines out, bytes in."""

    def __init__(self, path: str = "/dev/ttyS1") -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        tty.setraw(self._descriptor)

    def tell(self, line: str) -> None:
        """Send one line to the host."""
        os.set_blocking(self._descriptor, True)
        os.write(self._descriptor, line.encode()[:200].replace(b"\n", b" ") + b"\n")
        os.set_blocking(self._descriptor, False)

    def on_ring(self, callbacks: Mapping[bytes, Callable[[], None]]) -> None:
        """Call back for each byte that the host rings."""

        def rung() -> None:
            for byte in os.read(self._descriptor, 64):
                if callback := callbacks.get(bytes([byte])):
                    callback()

        asyncio.get_running_loop().add_reader(self._descriptor, rung)


class HostLink:
    """Streams from and to the host, made anew for each device that is plugged in."""

    def __init__(self, agent: Agent, doorbell: Doorbell) -> None:
        self._agent = agent
        self._doorbell = doorbell
        self._tasks: list[asyncio.Task[None]] = []

    def meet(self) -> None:
        """A device was plugged in: listen on it and dial the host."""
        self._leave()
        system.rescan_pci()
        # Listening comes first: the host connects as soon as it has heard from the agent.
        listener = _vsock_socket()
        listener.bind((socket.VMADDR_CID_ANY, AGENT_PORT))
        listener.listen(_BACKLOG)
        self._tasks = [asyncio.create_task(self._listen(listener)), asyncio.create_task(self._dial())]

    def part(self) -> None:
        """Nobody is behind the device any more: give it up, and tell the host that a new one may come."""
        self._leave()
        system.eject_vsock()
        self._doorbell.tell("parted")

    def _leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._agent.forget_host()

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                connection, (cid, _) = await loop.sock_accept(listener)
                # Only the host: through the loopback transport the user's own code could come this way too.
                if cid == HOST_CID:
                    self._agent.serve(connection)
                else:
                    connection.close()

    async def _dial(self) -> None:
        connection = _vsock_socket()
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_connect(connection, (HOST_CID, CONTROL_PORT))
            reader, writer = await asyncio.open_connection(sock=connection)
            await self._agent.control(reader, writer)
        connection.close()


def _vsock_socket() -> socket.socket:
    made = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    # Below 1024 only root may bind: nobody else in the guest can pose as the agent.
    made.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, _BUFFER)
    made.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, _BUFFER)
    return made
