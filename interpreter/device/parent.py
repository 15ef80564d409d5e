"""The parent of all devices' processes: it has loaded what they need, and forks one for each machine.

It has no threads and waits for two things only: requests on its socket, and its children's ends, which it has to see
for their machines' jails to end. It goes on without its service until its last child is gone.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
from typing import Final, NoReturn

from interpreter.device.jail import Cell, cell_of, give_up_rights, join, process_of
from interpreter.device.relay import Relay
from interpreter.device.wire import MAX_MESSAGE, START_DESCRIPTORS, Start, Started, failure, parse_start
from interpreter.errors import InterpreterError, VsockError

_PR_SET_CHILD_SUBREAPER: Final = 36
_OK: Final = b"+"
"""Said by a device that has moved in."""


def serve(channel: socket.socket, system_calls: bytes) -> None:
    """Fork devices as the service asks, until it is gone and so are they. ``system_calls``: the filter for them."""
    # The process between this one and a device ends at once; the device is this one's child from then on.
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this process cannot take care of its children's children")
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, _woken)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    # Children share these pages: no collection of theirs shall write into them.
    gc.collect()
    gc.freeze()
    poll = select.poll()
    for end in (channel, woken):
        poll.register(end, select.POLLIN)
    serving = True
    while _reap() or serving:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if woken.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
        if channel.fileno() in ready and not _take_request(channel, system_calls):
            serving = False
            poll.unregister(channel)


def _woken(_number: int, _frame: object) -> None:
    """A signal that nobody handles would wake nobody."""


def _reap() -> bool:
    """Let go of the children that have ended; whether there are others."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return False
    return True


def _take_request(channel: socket.socket, system_calls: bytes) -> bool:
    """Fork one device; False when the service is gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, START_DESCRIPTORS)
    except ConnectionError:
        return False
    if not data:
        return False
    try:
        answer = _start(parse_start(data), descriptors, system_calls)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    with contextlib.suppress(ConnectionError):
        channel.send(answer.pack())
    return True


def _start(start: Start, descriptors: list[int], system_calls: bytes) -> Started:
    try:
        if len(descriptors) != START_DESCRIPTORS:
            raise VsockError(f"a request for a device came with {len(descriptors)} descriptors")
        return Started(start.number, _fork_device(start, descriptors, cell_of(descriptors[1]), system_calls))
    except InterpreterError as error:
        return Started(start.number, 0, error.message)
    except OSError as error:
        return Started(start.number, 0, f"a device's process cannot be started: {error}")


def _fork_device(start: Start, descriptors: list[int], cell: Cell, system_calls: bytes) -> int:
    """Fork a process that moves into the jail, and from that one the device, which is then inside; returns its id."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    middle = os.fork()
    if middle == 0:
        _in_the_middle(start, descriptors, cell, system_calls, tell)
    os.close(tell)
    try:
        with os.fdopen(told, "rb") as answers:
            # From both, in any order: the number of the one, and that it has moved in from the other.
            answer = answers.read(MAX_MESSAGE)
    finally:
        os.waitpid(middle, 0)
    number = answer.replace(_OK, b"")
    if _OK not in answer or not number.isdigit():
        words = answer.decode(errors="replace").lstrip("0123456789")
        raise VsockError(words or "a device's process ended while it was started")
    return int(number)


def _in_the_middle(start: Start, descriptors: list[int], cell: Cell, system_calls: bytes, tell: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _close_all_but(*descriptors, tell)
        os.dup2(0, 2)
        join(cell, descriptors[1])
        device = os.fork()
        if device == 0:
            _be_device(start, descriptors, cell, system_calls, tell)
        os.write(tell, str(device).encode())
    except BaseException as error:
        os.write(tell, str(error).encode()[:MAX_MESSAGE])
    os._exit(0)


def _be_device(start: Start, descriptors: list[int], cell: Cell, system_calls: bytes, tell: int) -> NoReturn:
    channel, control = (socket.socket(fileno=descriptors[index]) for index in (0, 2))
    try:
        # As it is numbered inside.
        pid = process_of(descriptors[1])
        os.close(descriptors[1])
        give_up_rights(cell, system_calls)
        os.write(tell, _OK)
    except BaseException as error:
        os.write(tell, str(error).encode()[:MAX_MESSAGE])
        os._exit(1)
    os.close(tell)
    try:
        relay = Relay(channel, control, pid=pid, guest_cid=start.guest_cid, window=start.window)
        asyncio.run(relay.run())
    except BaseException as error:
        with contextlib.suppress(OSError):
            told = error if isinstance(error, InterpreterError) else VsockError(f"{type(error).__name__}: {error}")
            control.send(failure(told).pack())
    os._exit(0)


def _close_all_but(*kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (plain numbers are wanted)
        if (descriptor := int(name)) > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)
