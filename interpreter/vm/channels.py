"""The sockets between the service and one QEMU: control (QMP), doorbell, vsock.

A machine that ends with its parent gets connected pairs. One that must outlive the service gets listening sockets
in a folder of its own for control and doorbell: whoever may enter that folder can take the machine over later. The
vsock device's socket is a pair all the same: that device cannot be taken over, only replaced by a new one.
"""

import os
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONTROL: Final = "control"
DOORBELL: Final = "doorbell"
_BACKLOG: Final = 1


@dataclass(frozen=True, slots=True)
class QemuEnds:
    """QEMU's ends, as descriptors, and whether control and doorbell are listening sockets."""

    control: int
    doorbell: int
    vsock: int
    listening: bool = False


@dataclass(frozen=True, slots=True)
class Channels:
    """Both ends of everything. ``control``, ``doorbell`` and ``vsock`` are ours, non-blocking."""

    control: socket.socket
    doorbell: socket.socket
    vsock: socket.socket
    theirs: QemuEnds
    peers: tuple[socket.socket, ...]

    def started(self) -> None:
        """QEMU has its ends; let go of our copies, so that its end is seen."""
        for peer in self.peers:
            peer.close()


@contextmanager
def open_channels(folder: Path | None) -> Generator[Channels]:
    """Channels for a new machine; with a ``folder``, such that it can be taken over. Raises OSError."""
    with ExitStack() as stack:
        vsock, vsock_peer = socket_pair(stack)
        if folder is None:
            control, control_peer = socket_pair(stack)
            doorbell, doorbell_peer = socket_pair(stack)
        else:
            control_peer, doorbell_peer = (_listen(stack, folder / name) for name in (CONTROL, DOORBELL))
            # Connected before QEMU runs: the connection waits in the backlog.
            control, doorbell = (connect(stack, folder / name) for name in (CONTROL, DOORBELL))
        peers = (control_peer, doorbell_peer, vsock_peer)
        theirs = QemuEnds(*(peer.fileno() for peer in peers), listening=folder is not None)
        yield Channels(control, doorbell, vsock, theirs, peers)


def socket_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A connected pair that the stack closes; the first is non-blocking."""
    ours, theirs = socket.socketpair()
    stack.callback(ours.close)
    stack.callback(theirs.close)
    ours.setblocking(False)
    return ours, theirs


def connect(stack: ExitStack, path: Path) -> socket.socket:
    """A non-blocking socket that is connected to ``path``. Raises OSError, BlockingIOError when somebody else is."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.callback(connected.close)
    connected.setblocking(False)
    with _short(path) as name:
        connected.connect(name)
    return connected


def _listen(stack: ExitStack, path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stack.callback(listener.close)
    with _short(path) as name:
        listener.bind(name)
    listener.listen(_BACKLOG)
    return listener


@contextmanager
def _short(path: Path) -> Generator[str]:
    # A unix socket's path has at most 107 bytes, and the state folder may lie deep.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
