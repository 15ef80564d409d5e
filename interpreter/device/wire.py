"""The messages between the service and a device's process, and between the service and those processes' parent.

Each is one datagram on a SOCK_SEQPACKET socket, at most MAX_MESSAGE bytes, checked before it is read. A stream between
service and device is a unix stream socket beside, which carries bytes as they are. What such a socket cannot say, how
a stream ended, is said here.

| message | from | with it | means |
| --- | --- | --- | --- |
| CONNECT stream, port | service | one end of the stream | dial the guest's port |
| ACCEPT stream, port | service | one end of the stream | the guest may dial the host's port, once |
| ESTABLISHED stream, port | device | | there is a stream; the port at its other end |
| FAILED stream, text | device | | CONNECT found nobody |
| SHUT stream | both | | the sender sends nothing more, and still reads |
| CLOSED stream | both | | the sender wants no more of it; what it wrote before counts |
| RESET stream, text | both | | the sender broke it off |
| FAILURE port, text | device | | the device is at its end; ``port`` says of which kind |

Why it is known how a stream ended when its end is read: the sender first sends SHUT, CLOSED or RESET and then ends its
side of the stream's socket. Both are local sockets, in which a message lies in the receiver's queue before the call
that sent it returns. So whoever reads the end of a stream, and then reads the control socket until it is empty, has the
message; without one the other process has died, in the middle of whatever it was saying.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final

from interpreter.errors import GuestMisbehaved, InterpreterError, MachineDied, VsockError

MAX_MESSAGE: Final = 512
_HEAD: Final = struct.Struct("<BII")
_TEXT: Final = 400

_CAUSES: Final = (VsockError, GuestMisbehaved, MachineDied)


class Kind(enum.IntEnum):
    """What a message says; see the module."""

    CONNECT = 1
    ACCEPT = 2
    ESTABLISHED = 3
    FAILED = 4
    SHUT = 5
    CLOSED = 6
    RESET = 7
    FAILURE = 8


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``stream``: a number that the service gave; ``text``: why."""

    kind: Kind
    stream: int = 0
    port: int = 0
    text: str = ""

    def pack(self) -> bytes:
        """The datagram."""
        return _HEAD.pack(self.kind, self.stream, self.port) + self.text.encode(errors="replace")[:_TEXT]


def parse(data: bytes) -> Message:
    """The message in a datagram. Raises VsockError when there is none."""
    if not _HEAD.size <= len(data) <= MAX_MESSAGE:
        raise VsockError(f"a message of {len(data)} bytes on a device's control socket")
    kind, stream, port = _HEAD.unpack_from(data)
    if kind not in _KINDS:
        raise VsockError(f"a message of an unknown kind, {kind}, on a device's control socket")
    return Message(Kind(kind), stream, port, data[_HEAD.size :].decode(errors="replace"))


def failure(error: InterpreterError) -> Message:
    """The message that tells a device's last error."""
    kind = next((index for index, cause in enumerate(_CAUSES) if type(error) is cause), 0)
    return Message(Kind.FAILURE, port=kind, text=error.message)


def failure_of(message: Message) -> InterpreterError:
    """The error that a FAILURE tells."""
    return _CAUSES[message.port if message.port < len(_CAUSES) else 0](message.text)


_KINDS: Final = frozenset(Kind)

START_DESCRIPTORS: Final = 3
"""With a start come: the socket to QEMU's chardev, a pidfd of QEMU, one end of the device's control socket."""
_START: Final = struct.Struct("<III")
_STARTED: Final = struct.Struct("<Ii")


@dataclass(frozen=True, slots=True)
class Start:
    """Asks the parent for a device's process; ``number`` comes back with the answer."""

    number: int
    guest_cid: int
    window: int

    def pack(self) -> bytes:
        """The datagram."""
        return _START.pack(self.number, self.guest_cid, self.window)


@dataclass(frozen=True, slots=True)
class Started:
    """The parent's answer: the process id, as the parent sees it; 0 and why when there is none."""

    number: int
    pid: int
    text: str = ""

    def pack(self) -> bytes:
        """The datagram."""
        return _STARTED.pack(self.number, self.pid) + self.text.encode(errors="replace")[:_TEXT]


def parse_start(data: bytes) -> Start:
    """See ``Start``. Raises VsockError."""
    if len(data) != _START.size:
        raise VsockError(f"a request of {len(data)} bytes for a device")
    return Start(*_START.unpack(data))


def parse_started(data: bytes) -> Started:
    """See ``Started``. Raises VsockError."""
    if len(data) < _STARTED.size:
        raise VsockError(f"an answer of {len(data)} bytes to a request for a device")
    number, pid = _STARTED.unpack_from(data)
    return Started(number, pid, data[_STARTED.size :].decode(errors="replace"))
