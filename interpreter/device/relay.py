"""What a device's process does: the device on one side, the service's streams on the other, each wired to its like.

Without its service a device goes on: its streams are reset, and until its machine is taken over the guest's calls are
refused. It ends with its machine, or when QEMU lets go of it, or when the guest or QEMU breaks the protocol.
"""

import asyncio
import socket
from collections import deque

from interpreter.device.control import Control
from interpreter.device.stream import StreamTransport
from interpreter.device.wire import Kind, Message, failure
from interpreter.errors import InterpreterError, VsockConnectError, VsockError
from interpreter.vsock.backend import VsockDevice
from interpreter.vsock.device import MAX_CONNECTIONS
from interpreter.vsock.packet import HOST_CID
from interpreter.vsock.streams import VsockTransport

MAX_POSTED = 256
"""Streams that wait for the guest to dial."""


class Relay:
    """All streams of one device. ``run`` serves them until the device has ended."""

    def __init__(
        self, channel: socket.socket, control: socket.socket, *, pid: int, guest_cid: int, window: int
    ) -> None:
        self._device = VsockDevice(channel, pid=pid, guest_cid=guest_cid, on_request=self._requested, window=window)
        self._guest_cid = guest_cid
        self._control_socket = control
        self._streams: dict[int, StreamTransport] = {}
        self._dialling: dict[int, VsockTransport] = {}
        self._posted: dict[int, deque[tuple[int, socket.socket]]] = {}

    async def run(self) -> None:
        """Serve until the device's end; the service is told why."""
        self._control = Control(self._control_socket, self._on_message, self._service_gone, takes_descriptors=True)
        try:
            async with self._device as device:
                await device.wait_closed()
                cause = device.failure or VsockError("the vsock device was closed")
        except InterpreterError as error:
            cause = error
        self._service_gone(cause)
        left = asyncio.Event()
        self._control.send(failure(cause), sent=left.set)
        await left.wait()
        self._control.close()

    # The service

    def _on_message(self, message: Message, passed: socket.socket | None) -> None:
        match message.kind:
            case Kind.CONNECT if passed is not None:
                self._dial(message, passed)
            case Kind.ACCEPT if passed is not None:
                self._post(message, passed)
            case Kind.SHUT | Kind.CLOSED | Kind.RESET if passed is None:
                self._ended(message)
            case _:
                raise VsockError(f"a device's process does not take {message.kind.name} like this")

    def _dial(self, message: Message, sock: socket.socket) -> None:
        number = message.stream
        side = _GuestSide(self, number, sock)
        try:
            if len(self._streams) >= MAX_CONNECTIONS:
                raise VsockConnectError(f"there are {MAX_CONNECTIONS} streams to the guest already")
            self._dialling[number] = self._device.connect(message.port, side)
        except InterpreterError as error:
            sock.close()
            self._control.send(Message(Kind.FAILED, number, text=error.message))

    def _post(self, message: Message, sock: socket.socket) -> None:
        if sum(map(len, self._posted.values())) >= MAX_POSTED:
            sock.close()
            raise VsockError("the service listens for more streams than a device has")
        self._posted.setdefault(message.port, deque()).append((message.stream, sock))
        self._device.protocol.listening.add(message.port)

    def _ended(self, message: Message) -> None:
        number = message.stream
        if (stream := self._streams.get(number)) is not None:
            stream.peer_ended(message)
            if message.kind is Kind.CLOSED:
                side = stream.get_protocol()
                if isinstance(side, _ServiceSide):
                    side.other.expect_end()
        elif message.kind is Kind.SHUT:
            return
        elif (dialled := self._dialling.pop(number, None)) is not None:
            dialled.abort()
        else:
            self._withdraw(number)

    def _withdraw(self, number: int) -> None:
        for port, waiting in self._posted.items():
            for entry in waiting:
                if entry[0] == number:
                    waiting.remove(entry)
                    entry[1].close()
                    self._forget_port(port)
                    return

    def _service_gone(self, _: InterpreterError) -> None:
        posted = [number for waiting in self._posted.values() for number, _ in waiting]
        for number in [*self._streams, *self._dialling, *posted]:
            self._ended(Message(Kind.RESET, number, text="the service is gone"))

    # The guest

    def _requested(self, port: int, peer_port: int) -> asyncio.Protocol | None:
        waiting = self._posted.get(port)
        if not waiting or len(self._streams) >= MAX_CONNECTIONS:
            return None
        number, sock = waiting.popleft()
        self._forget_port(port)
        return _GuestSide(self, number, sock, told=peer_port)

    def _forget_port(self, port: int) -> None:
        if not self._posted[port]:
            del self._posted[port]
            self._device.protocol.listening.discard(port)

    def established(self, side: "_GuestSide", transport: VsockTransport) -> StreamTransport:
        """For a stream's guest side: it is there."""
        number = side.number
        self._dialling.pop(number, None)
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        told = own[1] if side.told is None else side.told
        self._control.send(Message(Kind.ESTABLISHED, number, told))
        service_side = _ServiceSide(transport)
        stream = self._streams[number] = StreamTransport(
            self._control, number, side.sock, service_side, lambda: self._forget(number)
        )
        # By name it is the service's: what it writes goes to the guest.
        stream.open((HOST_CID, own[1]), (self._guest_cid, peer[1]))
        return stream

    def _forget(self, number: int) -> None:
        self._streams.pop(number, None)

    def refused(self, side: "_GuestSide", cause: str) -> None:
        """For a stream's guest side: the guest did not take it."""
        side.sock.close()
        if self._dialling.pop(side.number, None) is not None:
            self._control.send(Message(Kind.FAILED, side.number, text=cause))


class _GuestSide(asyncio.Protocol):
    """What comes from the guest goes to the service. ``told``: the guest's port, when the guest dialled."""

    def __init__(self, relay: Relay, number: int, sock: socket.socket, *, told: int | None = None) -> None:
        self._relay = relay
        self._other: StreamTransport | None = None
        self.number = number
        self.sock = sock
        self.told = told

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, VsockTransport)  # noqa: S101  (the device makes no other)
        self._other = self._relay.established(self, transport)

    def data_received(self, data: bytes) -> None:
        if self._other is not None:
            self._other.write(data)

    def eof_received(self) -> bool:
        if self._other is not None:
            self._other.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._other is not None:
            self._other.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None:
            self._other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is None:
            self._relay.refused(self, str(exc))
        elif exc is None:
            self._other.close()
        else:
            self._other.reset(str(exc))


class _ServiceSide(asyncio.Protocol):
    """What comes from the service goes to the guest."""

    def __init__(self, other: VsockTransport) -> None:
        self.other = other

    def data_received(self, data: bytes) -> None:
        self.other.write(data)

    def eof_received(self) -> bool:
        self.other.write_eof()
        return True

    def pause_writing(self) -> None:
        self.other.pause_reading()

    def resume_writing(self) -> None:
        self.other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self.other.close()
        else:
            self.other.abort()
