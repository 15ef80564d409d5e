"""The device without its I/O: which connections there are, where each packet goes, and what is sent next.

Packets in by ``receive``, packets out by ``next_packet``, what happened as ``events``. Nothing that the guest does
makes it hold more than: ``max_connections`` times their window, and a bounded number of resets to send.
"""

import os
from collections import deque
from typing import Final

from interpreter.errors import GuestMisbehaved, VsockConnectError
from interpreter.vsock.connection import Closed, Connection, Event, Requested, State
from interpreter.vsock.packet import HOST_CID, STREAM, Header, Op, pack_header

DEFAULT_WINDOW: Final = 1024 * 1024
"""Bytes that the guest may send ahead, for each connection."""
MAX_CONNECTIONS: Final = 256
"""Most connections at once; the guest's further requests are refused."""
MAX_REPLIES: Final = 256
"""Resets that wait for room in the receive ring before the transmit ring is left alone."""

_FIRST_PORT: Final = 1 << 30
_LAST_PORT: Final = (1 << 31) - 1
_OPS: Final = frozenset(Op)


class DeviceProtocol:
    """All connections of one device."""

    def __init__(self, guest_cid: int, *, window: int = DEFAULT_WINDOW, max_connections: int = MAX_CONNECTIONS) -> None:
        self.guest_cid = guest_cid
        self.window = window
        self.listening: set[int] = set()
        """The host's ports that the guest may dial."""
        self.events: list[Event] = []
        """What happened; the user takes them out."""
        self.progressed: set[Connection] = set()
        """Connections whose ``unsent`` became less; the user takes them out."""
        self.dropped = 0
        """Packets that named another source or destination and were left unanswered (5.10.6.4)."""
        self._max_connections = max_connections
        self._connections: dict[tuple[int, int], Connection] = {}
        self._ready: deque[Connection] = deque()
        self._replies: deque[bytes] = deque()
        # A guest that still closes a stream to an earlier device on the same port would answer a new one with RST.
        self._next_port = _FIRST_PORT + int.from_bytes(os.urandom(4)) % (_LAST_PORT - _FIRST_PORT)

    @property
    def connections(self) -> list[Connection]:
        """All that are not closed."""
        return list(self._connections.values())

    @property
    def wants_to_send(self) -> bool:
        """Whether ``next_packet`` would write one."""
        return bool(self._replies or self._ready)

    @property
    def replies_full(self) -> bool:
        """Whether so many resets wait that nothing more may be received until some have gone out."""
        return len(self._replies) >= MAX_REPLIES

    # What the host does.

    def connect(self, port: int) -> Connection:
        """Dial a port of the guest's. Raises VsockConnectError when there are too many connections."""
        if len(self._connections) >= self._max_connections:
            raise VsockConnectError(f"there are {self._max_connections} connections to the guest already")
        while (port, self._next_port) in self._connections:
            self._advance_port()
        connection = Connection(self.guest_cid, port, self._next_port, self.window, State.CONNECTING)
        self._advance_port()
        self._connections[connection.key] = connection
        self._schedule(connection)
        return connection

    def accept(self, connection: Connection) -> None:
        """Take a request of the guest's."""
        connection.accept()
        self._schedule(connection)

    def write(self, connection: Connection, data: bytes) -> None:
        """Queue bytes for the guest."""
        if connection.state is not State.CLOSED:
            connection.write(data)
            self._schedule(connection)

    def shut(self, connection: Connection) -> None:
        """Tell the guest, after all that was written, that no more will come."""
        connection.shut()
        self._schedule(connection)

    def close(self, connection: Connection) -> None:
        """End a connection in good order: ShutdownSent follows, and Closed when the guest agreed."""
        if connection.state is State.ESTABLISHED:
            connection.close()
            self._schedule(connection)
        elif connection.state is not State.CLOSED:
            self.abort(connection)

    def abort(self, connection: Connection) -> None:
        """Reset a connection. No event follows. Refuses a request of the guest's, too."""
        if connection.state is not State.CLOSED:
            connection.state = State.CLOSED
            self._forget(connection)
            self._reply_reset(connection.peer_port, connection.local_port)

    def consume(self, connection: Connection, count: int) -> None:
        """Give the guest credit for received bytes that are no longer held."""
        connection.consume(count)
        self._schedule(connection)

    def reset(self, cause: str) -> None:
        """The guest's driver is gone: each connection ends with a Closed event, and nothing is sent."""
        for connection in self._connections.values():
            connection.state = State.CLOSED
            self.events.append(Closed(connection, cause))
        self._connections.clear()
        self._ready.clear()
        self._replies.clear()

    # What the guest does.

    def receive(self, header: Header, payload: bytes) -> None:
        """Take a packet. Raises GuestMisbehaved when the guest lies in a way that no reset answers."""
        if header.src_cid != self.guest_cid or header.dst_cid != HOST_CID:
            self.dropped += 1
            return
        if header.length != len(payload):
            raise GuestMisbehaved(f"a packet of {header.length} bytes came with {len(payload)}")
        connection = self._connections.get((header.src_port, header.dst_port))
        if header.type != STREAM or header.op not in _OPS:
            # 5.10.6.4.2: a type that is not known is answered with RST; so is an op.
            self._answer_reset(connection, header, "the guest sent a packet of an unknown kind")
        elif connection is None:
            if header.op == Op.REQUEST:
                self._request(header)
            else:
                self._answer_reset(None, header, "")
        elif self._give(connection, header, payload):
            if connection.state is State.CLOSED:
                self._forget(connection)
            else:
                self._schedule(connection)
        else:
            self._answer_reset(connection, header, "the guest sent a packet out of order")

    def next_packet(self, capacity: int, out: bytearray) -> int:
        """Append the next packet, with at most ``capacity`` bytes of data, to ``out``; returns its length, or 0.

        Connections take turns, packet by packet.
        """
        if self._replies:
            reply = self._replies.popleft()
            out += reply
            return len(reply)
        while self._ready:
            connection = self._ready.popleft()
            connection.scheduled = False
            if connection.state is State.CLOSED or not connection.wants_to_send:
                continue
            unsent = connection.unsent
            size = connection.next_packet(capacity, out, self.events)
            if connection.unsent < unsent:
                self.progressed.add(connection)
            self._schedule(connection)
            return size
        return 0

    def _give(self, connection: Connection, header: Header, payload: bytes) -> bool:
        unsent = connection.unsent
        legal = connection.receive(header, payload, self.events)
        if connection.unsent < unsent:
            self.progressed.add(connection)
        return legal

    def _request(self, header: Header) -> None:
        if header.dst_port not in self.listening or len(self._connections) >= self._max_connections:
            self._reply_reset(header.src_port, header.dst_port)
            return
        connection = Connection(self.guest_cid, header.src_port, header.dst_port, self.window, State.REQUESTED)
        connection.take_first_credit(header)
        self._connections[connection.key] = connection
        self.events.append(Requested(connection))

    def _answer_reset(self, connection: Connection | None, header: Header, cause: str) -> None:
        if connection is not None:
            if connection.state is not State.CLOSED:
                connection.state = State.CLOSED
                self.events.append(Closed(connection, cause))
            self._forget(connection)
        if header.op != Op.RST or connection is not None:
            self._reply_reset(header.src_port, header.dst_port)

    def _reply_reset(self, peer_port: int, local_port: int) -> None:
        self._replies.append(pack_header(HOST_CID, self.guest_cid, local_port, peer_port, 0, STREAM, Op.RST, 0, 0, 0))

    def _forget(self, connection: Connection) -> None:
        self._connections.pop(connection.key, None)

    def _schedule(self, connection: Connection) -> None:
        if not connection.scheduled and connection.wants_to_send:
            connection.scheduled = True
            self._ready.append(connection)

    def _advance_port(self) -> None:
        self._next_port = _FIRST_PORT if self._next_port == _LAST_PORT else self._next_port + 1
