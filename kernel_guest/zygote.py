"""The zygote: a process that has imported all a kernel needs, and forks one on request.

So a new kernel takes milliseconds instead of the many seconds of its imports. It stays single-threaded, because
only then a fork carries everything over. A kernel is forked twice: the middle process ends, the agent inherits
the kernel, and learns as its parent how it ended.

Requests come as one JSON packet with a descriptor: ``{"folder", "group", "key", "session", "env"}`` and the socket
that the kernel gets.
"""

import builtins
import gc
import json
import os
import resource
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from kernel_guest.groups import Group
from kernel_guest.kernel import tracebacks
from kernel_guest.kernel.app import run_kernel, write_connection_file
from kernel_guest.kernel.ending import end_python

USER = 1000
HOME = "/home/user"
_MAX_PROCESSES = 256
_LIKELY_VICTIM = "500"
"""oom_score_adj of kernels: when memory runs out they go, and the agent stays to tell."""


def main() -> None:
    """Serve fork requests on descriptor 3 until its other end is closed."""
    requests = socket.socket(fileno=3)
    warmup = Path(sys.argv[1])
    drop = sys.argv[2] == "drop"
    # Python put the folder that this was started in before all others; IPython puts a kernel's own where it belongs.
    if sys.path[0] in ("", str(Path.cwd())):
        del sys.path[0]
    _warm_up(warmup, drop=drop)
    tracebacks.warm_up()
    # Objects from here on are not looked at by the collector, so their pages stay shared.
    gc.collect()
    gc.freeze()
    requests.send(b'{"ready": true}')
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 1)
        if not data:
            return
        child = os.fork()
        if child == 0:
            _fork_kernel(requests, json.loads(data), descriptors[0], drop=drop)
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(child, 0)


def _warm_up(code: Path, *, drop: bool) -> None:
    # As the user, so that caches which imports write belong to the user; the real id stays root's, so that no
    # process of the user's can signal this one.
    if drop:
        os.setegid(USER)
        os.seteuid(USER)
    # Libraries that ask for it on their import take themselves to be on a terminal, and print less, when it is missing.
    there: Any = builtins
    there.get_ipython = _KernelToCome
    try:
        if code.is_file():
            runpy.run_path(str(code))
    finally:
        del there.get_ipython
        if drop:
            os.seteuid(0)
            os.setegid(0)


class _KernelToCome:
    """What `get_ipython()` gives before there is a shell: a shell of a kernel's, as far as anybody asks on import."""

    kernel = None


def _fork_kernel(requests: socket.socket, request: dict[str, Any], descriptor: int, *, drop: bool) -> None:
    """In the first child: fork again, tell the kernel's process id, end. The second child becomes the kernel."""
    kernel = os.fork()
    if kernel != 0:
        requests.send(json.dumps({"pid": kernel}).encode())
        os._exit(0)
    status = 1
    console = sys.stderr
    try:
        requests.close()
        os.setsid()
        Group(Path(request["group"]) if request["group"] else None).add(os.getpid())
        _confine(drop=drop)
        console = _leave_console()
        folder = Path(request["folder"])
        key: str = request["key"]
        connection_file = write_connection_file(folder, key.encode("ascii"))
        run_kernel(connection_file, socket.socket(fileno=descriptor), request["session"], request["env"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc(file=console)
    try:
        end_python()
    except BaseException:
        traceback.print_exc(file=console)
    os._exit(status)


def _leave_console() -> TextIO:
    """A kernel has no terminal; returns where what ends it is told.

    The machine's console is one without rows and columns: what asks it for its width, as progress bars do, would show
    nothing.
    """
    console = open(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")  # noqa: PTH123, SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return console


def _confine(*, drop: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    Path("/proc/self/oom_score_adj").write_text(_LIKELY_VICTIM, encoding="ascii")
    if drop:
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        os.chdir(HOME)


if __name__ == "__main__":
    main()
