"""What all kernels of a process share: a thread that relays, and where their machines come from.

A provisioner's own event loop turns only while a call of its manager is in progress; bytes must pass at any time.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

import structlog

from interpreter.client.loop import BackgroundLoop
from interpreter.jupyter.embedded import EmbeddedGuests
from interpreter.jupyter.endpoints import endpoints_in
from interpreter.jupyter.folder import socket_folder
from interpreter.jupyter.guests import Guests, Wanted
from interpreter.jupyter.relayed import RelayedKernel
from interpreter.jupyter.remote import RemoteGuests

T = TypeVar("T")


class Shared:
    """The thread, with an event loop, and what runs in it. Made by the first kernel, closed with the last one."""

    def __init__(self) -> None:
        self.users = 0
        self._loop = BackgroundLoop("interpreter-kernels")
        self._guests: dict[str, Guests] = {}
        self._kernels: dict[RelayedKernel, ExitStack] = {}

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the thread, from any loop, and wait for its result."""
        return await self._loop.join(work)

    async def new_kernel(self, url: str, wanted: Wanted) -> RelayedKernel:
        """A kernel that is not started yet, of the service at ``url``, or of this process when that is empty.

        Raises ConfigurationError for what is no URL, HostError.
        """
        return await self.run(self._new_kernel(url, wanted))

    async def close_kernel(self, kernel: RelayedKernel) -> None:
        """Close a kernel."""
        # A front end may tidy up when this is closed already, because the process ends.
        if not self._loop.closed:
            await self.run(self._close_kernel(kernel))

    def abandon(self, kernel: RelayedKernel) -> None:
        """Close a kernel whose user was forgotten, without waiting; the thread stays, for the next one."""
        self._loop.start(self._abandon(kernel))

    async def close(self) -> None:
        """Close what the kernels shared, and end the thread."""
        if not self._loop.closed:
            await self.run(self._close())
            self._loop.close()

    def close_at_exit(self) -> None:
        """Close all kernels, and the rest."""
        # Threads can be had no more at this time, which some of it wants. The machines end with this one in any case.
        with contextlib.suppress(Exception):
            self._loop.run(self._close())
            self._loop.close()
        for folder in self._kernels.values():
            folder.close()

    async def _new_kernel(self, url: str, wanted: Wanted) -> RelayedKernel:
        if url not in self._guests:
            self._guests[url] = guests_of(url)
        with ExitStack() as stack:
            endpoints = endpoints_in(stack.enter_context(socket_folder()))
            kernel = RelayedKernel(self._guests[url], wanted, endpoints)
            self._kernels[kernel] = stack.pop_all()
        return kernel

    async def _close_kernel(self, kernel: RelayedKernel) -> None:
        try:
            await kernel.close()
        finally:
            if kernel in self._kernels:
                self._kernels.pop(kernel).close()

    async def _abandon(self, kernel: RelayedKernel) -> None:
        await self._close_kernel(kernel)
        with _lock:
            self.users -= 1

    async def _close(self) -> None:
        for kernel in list(self._kernels):
            await self._close_kernel(kernel)
        while self._guests:
            await self._guests.popitem()[1].close()


_lock = threading.Lock()
_current: Shared | None = None


def join_shared() -> Shared:
    """Be one of the users of what the process's kernels share, until `leave_shared`."""
    global _current
    with _lock:
        if _current is None:
            _current = Shared()
        _current.users += 1
        return _current


async def leave_shared(shared: Shared) -> None:
    """Use it no more; after its last user it is closed."""
    global _current
    with _lock:
        shared.users -= 1
        if shared.users > 0:
            return
        if _current is shared:
            _current = None
    await shared.close()


def be_quiet() -> None:
    """Keep the package's own events out of the host program's output, unless it wants them otherwise."""
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )


def guests_of(url: str) -> Guests:
    """Where kernels come from: the service at ``url``, or an engine of this process when that is empty."""
    return RemoteGuests(url) if url else EmbeddedGuests()


def _at_exit() -> None:
    if _current is not None:
        _current.close_at_exit()


def _after_fork() -> None:
    # The thread is the parent's, and so are its machines; and the lock may be held by nobody who is here.
    global _current, _lock
    _current, _lock = None, threading.Lock()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)
