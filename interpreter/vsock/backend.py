"""The vsock device on an asyncio loop: QEMU's socket, the rings' eventfds, and a transport for each stream.

An idle device waits on descriptors and does nothing else: no timer, no thread, no polling. It may stand still when
QEMU wants it to (an eventfd that QEMU made blocking and filled), so it runs in a process of its own.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from interpreter.errors import InterpreterError, MachineDied, VsockError
from interpreter.vsock import vhost_user
from interpreter.vsock.connection import (
    Closed,
    Connection,
    DataReceived,
    EndOfStream,
    Established,
    Requested,
    ShutdownSent,
)
from interpreter.vsock.device import DEFAULT_WINDOW, MAX_CONNECTIONS, DeviceProtocol
from interpreter.vsock.memory import ProcessMemory
from interpreter.vsock.packet import HEADER_SIZE
from interpreter.vsock.ring import MAX_DATA, MIN_RECEIVE, Ring
from interpreter.vsock.streams import VsockTransport
from interpreter.vsock.virtqueue import Virtqueue

OnRequest = Callable[[int, int], asyncio.Protocol | None]
"""Asked when the guest dials a port of the host that is listened on: the port and the guest's own. None refuses."""

_ROUNDS: Final = 4
_MESSAGES: Final = 64
_MAX_DESCRIPTORS: Final = vhost_user.MAX_REGIONS


class VsockDevice:
    """A virtio-vsock device for one machine, as an async context manager.

    ``sock`` is this end of the connected AF_UNIX socket whose other end is the chardev of QEMU's vhost-user-vsock
    device; it is the device's from now on. The device may be plugged and unplugged any number of times; unplugging,
    or the guest's driver letting go of it, resets all streams. When QEMU ends or the guest misbehaves, all streams
    are reset and ``failure`` is set.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        pid: int,
        guest_cid: int,
        on_request: OnRequest,
        window: int = DEFAULT_WINDOW,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """``pid``: QEMU's process id in this process's namespace; ``guest_cid``: at least 3, below 2**32 - 1.

        Which ports of the host the guest may dial is told by ``protocol.listening``.
        """
        if not 3 <= guest_cid < 0xFFFF_FFFF:
            raise VsockError(f"{guest_cid} cannot be a guest's context id")
        self.protocol = DeviceProtocol(guest_cid, window=window, max_connections=max_connections)
        self.failure: InterpreterError | None = None
        self._socket = sock
        self._pid = pid
        self._rings: dict[int, Ring] = {}
        self._front_end = vhost_user.VhostUserBackend(guest_cid, self._ring_base)
        self._transports: dict[Connection, VsockTransport] = {}
        self._on_request = on_request
        self._closed = asyncio.Event()
        self._work_scheduled = False
        self._unsent_replies = bytearray()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        try:
            self._memory = ProcessMemory(self._pid)
        except MachineDied:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._guarded, self._read_socket)
        self._loop.add_reader(self._memory.pidfd, self._guarded, self._memory.check_alive)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(VsockError("the vsock device was closed"))

    async def wait_closed(self) -> None:
        """Wait until the device is closed, for whatever cause; ``failure`` tells it."""
        await self._closed.wait()

    def connect(self, port: int, protocol: asyncio.Protocol) -> VsockTransport:
        """Dial a port in the guest: ``protocol`` is told by connection_made once the guest has taken it.

        A guest that refuses is told by connection_lost alone, with a ConnectionResetError. Raises VsockConnectError
        when there are too many connections.
        """
        connection = self.protocol.connect(port)
        transport = self._new_transport(connection, protocol)
        self.flush_soon()
        return transport

    def flush_soon(self) -> None:
        """For transports: send what wants to be sent, within this turn of the loop."""
        if self.protocol.wants_to_send and self._rings:
            self._work_soon()

    def release(self, connection: Connection) -> None:
        """For transports: no event will come for this connection any more."""
        self._transports.pop(connection, None)

    # Wake-ups

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a callback of the loop; what the guest or QEMU does wrong closes the device."""
        if self.failure is not None:
            return
        try:
            work()
        except InterpreterError as error:
            self._close(error)

    def _read_socket(self) -> None:
        # Not without end: a front end that never stops talking must not stop the loop.
        for _ in range(_MESSAGES):
            try:
                data, descriptors, _, _ = socket.recv_fds(self._socket, self._front_end.wanted, _MAX_DESCRIPTORS)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise MachineDied(f"the machine let go of its vsock device: {error}") from None
            if not data:
                raise MachineDied("the machine let go of its vsock device")
            try:
                for event in self._front_end.receive(data, descriptors):
                    self._handle_front_end(event)
            finally:
                self._close_garbage()
            if self.failure is not None:
                return

    def _kicked(self, ring: Ring) -> None:
        try:
            os.read(ring.kick, 8)
        except BlockingIOError:
            return
        self._work()

    def _work(self) -> None:
        self._work_scheduled = False
        self._memory.check_alive()
        more = self._take_transmitted()
        self._fill_receive_ring()
        if self.protocol.progressed:
            progressed, self.protocol.progressed = self.protocol.progressed, set()
            for connection in progressed:
                if (transport := self._transports.get(connection)) is not None:
                    transport.on_progress()
        if more:
            self._work_soon()

    def _work_soon(self) -> None:
        if not self._work_scheduled:
            self._work_scheduled = True
            self._loop.call_soon(self._guarded, self._work)

    # Rings

    def _take_transmitted(self) -> bool:
        """Take packets of the guest's; True when there is more, which must wait for the loop's next turn."""
        ring = self._rings.get(vhost_user.TRANSMIT_RING)
        if ring is None:
            return False
        queue, protocol = ring.queue, self.protocol
        for _ in range(_ROUNDS):
            if protocol.replies_full:
                # Taken up again by the work that follows the guest's next receive buffers.
                return False
            if not queue.chains and not queue.fetch() and not queue.want_kick():
                return False
            for header, payload in ring.take(self._memory):
                protocol.receive(header, payload)
            self._handle_events()
        return True

    def _fill_receive_ring(self) -> None:
        ring = self._rings.get(vhost_user.RECEIVE_RING)
        if ring is None:
            return
        protocol = self.protocol
        was_full = protocol.replies_full
        more = ring.fill(protocol)
        self._handle_events()
        if more or (was_full and not protocol.replies_full):
            self._work_soon()

    def _handle_events(self) -> None:
        while self.protocol.events:
            events, self.protocol.events = self.protocol.events, []
            for event in events:
                transport = self._transports.get(event.connection)
                match event:
                    case DataReceived():
                        if transport is not None:
                            transport.on_data(event.data)
                    case Requested():
                        self._answer_request(event.connection)
                    case Established():
                        if transport is not None:
                            transport.on_open()
                    case EndOfStream():
                        if transport is not None:
                            transport.on_eof()
                    case ShutdownSent():
                        if transport is not None:
                            transport.on_shutdown_sent()
                    case Closed():
                        self._connection_closed(event)

    def _connection_closed(self, event: Closed) -> None:
        if (transport := self._transports.pop(event.connection, None)) is not None:
            transport.on_closed(event.cause)

    def _answer_request(self, connection: Connection) -> None:
        protocol = self._on_request(connection.local_port, connection.peer_port)
        if protocol is None:
            self.protocol.abort(connection)
            return
        self.protocol.accept(connection)
        self._new_transport(connection, protocol).on_open()

    def _new_transport(self, connection: Connection, protocol: asyncio.Protocol) -> VsockTransport:
        transport = self._transports[connection] = VsockTransport(self._loop, self, connection, protocol)
        return transport

    # The front end

    def _handle_front_end(self, event: vhost_user.Event) -> None:
        match event:
            case vhost_user.Reply():
                self._send_reply(event.data)
            case vhost_user.RingStarted():
                self._start_ring(event)
            case vhost_user.RingStopped():
                ring = self._rings.pop(event.ring)
                self._loop.remove_reader(ring.kick)
                self._reset_streams("the guest's vsock device was stopped")
            case vhost_user.CallChanged():
                _check_eventfd(event.call)
                if (ring := self._rings.get(event.ring)) is not None:
                    ring.call = event.call
            case vhost_user.MemoryChanged():
                for ring in self._rings.values():
                    ring.queue.change_map(event.memory_map)

    def _ring_base(self, index: int) -> int:
        ring = self._rings.get(index)
        return 0 if ring is None else ring.queue.next_available

    def _start_ring(self, event: vhost_user.RingStarted) -> None:
        _check_eventfd(event.kick)
        _check_eventfd(event.call)
        receive = event.ring == vhost_user.RECEIVE_RING
        queue = Virtqueue(
            self._memory,
            event.memory_map,
            event.layout,
            base=event.base,
            writable=receive,
            min_chain=MIN_RECEIVE if receive else HEADER_SIZE,
            # A guest cannot send more at once than its credit; what it offers for receiving is its own affair.
            max_chain=1 << 32 if receive else HEADER_SIZE + max(self.protocol.window, MAX_DATA),
            event_idx=vhost_user.Feature.EVENT_IDX in event.features,
            indirect=vhost_user.Feature.INDIRECT_DESC in event.features,
        )
        ring = self._rings[event.ring] = Ring(queue, event.kick, event.call)
        if receive:
            queue.suppress_kicks()
        self._loop.add_reader(event.kick, self._guarded, lambda: self._kicked(ring))
        # What was made available before now was kicked for on a descriptor that is gone.
        self._loop.call_soon(self._guarded, self._work)

    def _send_reply(self, data: bytes) -> None:
        self._unsent_replies += data
        self._flush_replies()

    def _flush_replies(self) -> None:
        try:
            sent = self._socket.send(self._unsent_replies)
        except BlockingIOError:
            sent = 0
        except ConnectionError as error:
            raise MachineDied(f"the machine let go of its vsock device: {error}") from None
        del self._unsent_replies[:sent]
        if len(self._unsent_replies) > 64 * vhost_user.MAX_PAYLOAD:
            raise VsockError("the machine asks and does not read the answers")
        if self._unsent_replies:
            self._loop.add_writer(self._socket, self._guarded, self._flush_replies)
        else:
            self._loop.remove_writer(self._socket)

    def _close_garbage(self) -> None:
        garbage, self._front_end.garbage = self._front_end.garbage, []
        for descriptor in garbage:
            os.close(descriptor)

    # The end

    def _reset_streams(self, cause: str) -> None:
        self.protocol.reset(cause)
        self._handle_events()

    def _close(self, failure: InterpreterError) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        for ring in self._rings.values():
            self._loop.remove_reader(ring.kick)
        self._loop.remove_reader(self._memory.pidfd)
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        # The rings' last indexes are of no use to anyone now, so nothing more touches the machine's memory.
        self._front_end.close()
        self._close_garbage()
        self._rings.clear()
        self._socket.close()
        self._memory.close()
        self._reset_streams(str(failure))
        self._closed.set()


def _check_eventfd(descriptor: int | None) -> None:
    """Raises VsockError unless this is an eventfd; makes it non-blocking, which QEMU, whose it is as well, may undo."""
    if descriptor is None:
        return
    if str(Path(f"/proc/self/fd/{descriptor}").readlink()) != "anon_inode:[eventfd]":
        raise VsockError("a ring was given a descriptor that is no eventfd")
    os.set_blocking(descriptor, False)
