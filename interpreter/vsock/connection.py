"""One stream connection: its states, its credit in both directions, and what it wants to send next.

Nothing here does I/O or knows of rings: ``receive`` takes a packet, ``next_packet`` writes one. The life of a
connection is the table ``RECEIVED``; a packet that has no line there is answered with a reset.
Source: virtio 1.2, sections 5.10.6.3 (credit), 5.10.6.4 (RW) and 5.10.6.5 (states).
"""

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final

from interpreter.errors import GuestMisbehaved
from interpreter.vsock.packet import (
    HOST_CID,
    SHUTDOWN_BOTH,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    STREAM,
    Header,
    Op,
    pack_header,
)

_COUNTER_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 1 << 31
_SMALL: Final = 4096
_SHARED: Final = 64 * 1024


class State(enum.Enum):
    """Where a connection stands."""

    CONNECTING = enum.auto()
    """The host's REQUEST waits for the guest's answer."""
    REQUESTED = enum.auto()
    """The guest's REQUEST waits for ours."""
    ESTABLISHED = enum.auto()
    CLOSING = enum.auto()
    """The host wants no more of it; what was written still goes out, then SHUTDOWN, then the guest's RST comes."""
    CLOSED = enum.auto()


RECEIVED: Final[dict[tuple[State, Op], State]] = {
    (State.CONNECTING, Op.RESPONSE): State.ESTABLISHED,
    (State.CONNECTING, Op.RST): State.CLOSED,
    (State.REQUESTED, Op.RST): State.CLOSED,
    (State.ESTABLISHED, Op.RW): State.ESTABLISHED,
    (State.ESTABLISHED, Op.CREDIT_UPDATE): State.ESTABLISHED,
    (State.ESTABLISHED, Op.CREDIT_REQUEST): State.ESTABLISHED,
    (State.ESTABLISHED, Op.SHUTDOWN): State.ESTABLISHED,  # CLOSED once both directions were shut
    (State.ESTABLISHED, Op.RST): State.CLOSED,
    (State.CLOSING, Op.RW): State.CLOSING,
    (State.CLOSING, Op.CREDIT_UPDATE): State.CLOSING,
    (State.CLOSING, Op.CREDIT_REQUEST): State.CLOSING,
    (State.CLOSING, Op.SHUTDOWN): State.CLOSING,  # CLOSED once both directions were shut
    (State.CLOSING, Op.RST): State.CLOSED,
}
"""The state after a packet of the guest's. What is not listed is against the protocol."""


@dataclass(frozen=True, slots=True, eq=False)
class Requested:
    """The guest dials a port that is listened on: accept or refuse."""

    connection: "Connection"


@dataclass(frozen=True, slots=True, eq=False)
class Established:
    """The guest took the host's request."""

    connection: "Connection"


@dataclass(frozen=True, slots=True, eq=False)
class DataReceived:
    """Bytes came. They count against the guest's credit until they are consumed."""

    connection: "Connection"
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class EndOfStream:
    """The guest will send nothing more."""

    connection: "Connection"


@dataclass(frozen=True, slots=True, eq=False)
class ShutdownSent:
    """After ``close``: all that was written has gone out."""

    connection: "Connection"


@dataclass(frozen=True, slots=True, eq=False)
class Closed:
    """It is over. ``cause`` is None when both sides agreed and nothing that was written got lost."""

    connection: "Connection"
    cause: str | None


Event = Requested | Established | DataReceived | EndOfStream | ShutdownSent | Closed


class Connection:
    """One connection. Made by ``DeviceProtocol``, which alone calls what changes it."""

    __slots__ = (
        "_announced",
        "_forwarded",
        "_guest_cid",
        "_peer_buf_alloc",
        "_peer_shutdown",
        "_pending",
        "_received",
        "_sent",
        "_shutdown_sent",
        "_shutdown_wanted",
        "_unsent",
        "_update_due",
        "in_flight",
        "local_port",
        "peer_port",
        "scheduled",
        "state",
        "unsent",
        "window",
    )

    def __init__(self, guest_cid: int, peer_port: int, local_port: int, window: int, state: State) -> None:
        """``window``: bytes that the guest may send ahead of what was consumed."""
        self.peer_port = peer_port
        self.local_port = local_port
        self.window = window
        self.state = state
        self.scheduled = False
        self.unsent = 0
        """Bytes that were written and did not go out yet."""
        self.in_flight = 0
        """Bytes that went out and that the guest has not consumed, as far as it told."""
        self._guest_cid = guest_cid
        self._pending: Op | None = Op.REQUEST if state is State.CONNECTING else None
        self._unsent: deque[bytearray | memoryview] = deque()
        self._sent = 0
        self._peer_buf_alloc = 0
        self._received = 0
        self._forwarded = 0
        self._announced = 0
        self._update_due = False
        self._shutdown_wanted = 0
        self._shutdown_sent: int = 0
        self._peer_shutdown = 0

    @property
    def key(self) -> tuple[int, int]:
        """The guest's port and the host's."""
        return self.peer_port, self.local_port

    @property
    def wants_to_send(self) -> bool:
        """Whether ``next_packet`` would write one."""
        if self._pending is not None or self._update_due:
            return True
        if self.state not in (State.ESTABLISHED, State.CLOSING):
            return False
        if self.unsent:
            return self.in_flight < self._peer_buf_alloc
        return self._shutdown_wanted != self._shutdown_sent

    # What the host does.

    def accept(self) -> None:
        """Take the guest's request."""
        self.state = State.ESTABLISHED
        self._pending = Op.RESPONSE

    def write(self, data: bytes) -> None:
        """Queue bytes. After the guest stopped receiving they go nowhere."""
        if self._peer_shutdown & SHUTDOWN_RECEIVE:
            return
        self.unsent += len(data)
        chunks = self._unsent
        if not chunks or len(data) >= _SMALL:
            chunks.append(memoryview(data))
            return
        # Small writes that pile up share one buffer, or each would cost many times its size.
        last = chunks[-1]
        if isinstance(last, bytearray) and len(last) < _SHARED:
            last += data
        else:
            chunks.append(bytearray(data))

    def shut(self) -> None:
        """Send nothing more after what was written."""
        self._shutdown_wanted |= SHUTDOWN_SEND

    def close(self) -> None:
        """Send nothing more after what was written, and receive nothing more."""
        self._shutdown_wanted = SHUTDOWN_BOTH
        self.state = State.CLOSING

    def consume(self, count: int) -> None:
        """Give the guest credit for ``count`` received bytes. It is told when half of its window is consumed."""
        self._forwarded = (self._forwarded + count) & _COUNTER_MASK
        # Linux caps what it has in flight by its own buffer too, so that can be the smaller window of the two.
        window = min(self.window, self._peer_buf_alloc)
        if count and ((self._forwarded - self._announced) & _COUNTER_MASK) * 2 >= window:
            self._update_due = self.state in (State.ESTABLISHED, State.CLOSING)

    # What the guest does.

    def receive(self, header: Header, payload: bytes, events: list[Event]) -> bool:
        """Take a packet of the guest's, with an ``op`` that is known. False when the answer must be a reset.

        Raises GuestMisbehaved when the guest lies about credit.
        """
        op = Op(header.op)
        state = RECEIVED.get((self.state, op))
        if state is None:
            return False
        if op == Op.RST:
            self._end(events)
            return True
        self._take_credit(header)
        if op == Op.RW:
            return self._take_data(payload, events)
        if op == Op.SHUTDOWN:
            return self._take_shutdown(header.flags, events)
        if op == Op.CREDIT_REQUEST:
            self._update_due = True
        elif op == Op.RESPONSE:
            self.state = state
            events.append(Established(self))
        return True

    def take_first_credit(self, header: Header) -> None:
        """Read the guest's credit from its REQUEST."""
        self._take_credit(header)

    def _take_credit(self, header: Header) -> None:
        in_flight = (self._sent - header.fwd_cnt) & _COUNTER_MASK
        if in_flight >= _HALF:
            raise GuestMisbehaved("the guest says that it consumed more than it was sent")
        # Two threads of a guest can send their packets in another order than they took the counter, so an older
        # count is no lie; it is no news either.
        self.in_flight = min(self.in_flight, in_flight)
        self._peer_buf_alloc = min(header.buf_alloc, _HALF)

    def _take_data(self, payload: bytes, events: list[Event]) -> bool:
        self._received = (self._received + len(payload)) & _COUNTER_MASK
        if ((self._received - self._forwarded) & _COUNTER_MASK) > self.window:
            raise GuestMisbehaved("the guest sent more than it had credit for")
        if self._peer_shutdown & SHUTDOWN_SEND:
            return False
        if payload:
            events.append(DataReceived(self, payload))
        return True

    def _take_shutdown(self, flags: int, events: list[Event]) -> bool:
        new = flags & SHUTDOWN_BOTH & ~self._peer_shutdown
        self._peer_shutdown |= new
        if new & SHUTDOWN_SEND:
            events.append(EndOfStream(self))
        if self._peer_shutdown == SHUTDOWN_BOTH:
            # 5.10.6.5: when both are set, the answer is RST, and the connection is gone.
            self._end(events, orderly=True)
            return False
        if new & SHUTDOWN_RECEIVE:
            self._unsent.clear()
            self.unsent = 0
        return True

    def _end(self, events: list[Event], *, orderly: bool = False) -> None:
        before, self.state = self.state, State.CLOSED
        if before is State.CONNECTING:
            cause = "the guest refused the connection"
        elif orderly or (before is State.CLOSING and self._shutdown_sent == SHUTDOWN_BOTH):
            cause = f"the guest closed it with {self.unsent} bytes unsent" if self.unsent else None
        else:
            cause = "the guest reset it"
        events.append(Closed(self, cause))

    # What goes out.

    def next_packet(self, capacity: int, out: bytearray, events: list[Event]) -> int:
        """Append the next packet, with at most ``capacity`` bytes of data, to ``out``; returns its length."""
        op, flags, length = Op.CREDIT_UPDATE, 0, 0
        start = len(out)
        if self._pending is not None:
            op, self._pending = self._pending, None
        elif self.unsent and self.in_flight < self._peer_buf_alloc and self.state is not State.CLOSED:
            op = Op.RW
            length = min(capacity, self.unsent, self._peer_buf_alloc - self.in_flight)
        elif not self.unsent and self._shutdown_wanted != self._shutdown_sent:
            op, flags = Op.SHUTDOWN, self._shutdown_wanted
            self._shutdown_sent = flags
            if flags == SHUTDOWN_BOTH:
                events.append(ShutdownSent(self))
        self._announced = self._forwarded
        self._update_due = False
        out += pack_header(
            HOST_CID,
            self._guest_cid,
            self.local_port,
            self.peer_port,
            length,
            STREAM,
            op,
            flags,
            self.window,
            self._forwarded,
        )
        if length:
            self._take_unsent(length, out)
        return len(out) - start

    def _take_unsent(self, length: int, out: bytearray) -> None:
        self.unsent -= length
        self.in_flight += length
        self._sent = (self._sent + length) & _COUNTER_MASK
        chunks = self._unsent
        while length:
            chunk = chunks[0]
            if len(chunk) <= length:
                out += chunk
                length -= len(chunk)
                chunks.popleft()
            else:
                out += memoryview(chunk)[:length]
                chunks[0] = memoryview(chunk)[length:]
                length = 0
