"""How the agent meets the host: the doorbell, the stream that it dials, the port that it listens on."""

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
    """Streams from and to the host: one listener for good, and a stream dialled anew for each device."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._dialling: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    def meet(self) -> None:
        """A device was plugged in: give up the one before, find the new one and dial the host."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._agent.forget_host()
        # The host pulls a device out without a word; its driver still holds it.
        system.remove_vsock()
        system.rescan_pci()
        # Listening comes first: the host connects as soon as it has heard from the agent.
        if self._listening is None:
            listener = _vsock_socket()
            listener.bind((socket.VMADDR_CID_ANY, AGENT_PORT))
            listener.listen(_BACKLOG)
            self._listening = asyncio.create_task(self._listen(listener))
        self._dialling = asyncio.create_task(self._dial())

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
