"""Errors of the system, injected at the boundaries of a session's life: its start, its end, its taking back."""

import asyncio
import errno
import functools
import inspect
import os
import socket
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from interpreter.engine.session import Session
from interpreter.kernel.control import AgentControl
from interpreter.sessions.ending import Ender
from interpreter.sessions.starting import Starter
from interpreter.sessions.takeback import TakeBack
from interpreter.store.database import Database
from interpreter.vm.qmp import Qmp

Patch = Callable[[object, str, object], None]

ERRORS = (errno.EMFILE, errno.ENOSPC, errno.ENOMEM, errno.ECONNRESET)

BOUNDARIES: dict[str, tuple[object, str]] = {
    "thread": (asyncio, "to_thread"),
    "write": (Database, "run"),
    "read": (Database, "read"),
    "process": (asyncio, "create_subprocess_exec"),
    "connect": (socket.socket, "connect"),
    "pair": (socket, "socketpair"),
    "pipe": (os, "pipe2"),
    "pidfd": (os, "pidfd_open"),
    "folder": (Path, "mkdir"),
    "qemu": (Qmp, "execute"),
    "agent": (AgentControl, "call"),
    "context": (Session, "join_context"),
}
"""Where the service meets the system, by a word of the tests'."""

WORKS: dict[str, tuple[type, str]] = {
    "start": (Starter, "start"),
    "end": (Ender, "end"),
    "take back": (TakeBack, "_try"),
}

_working: ContextVar[str] = ContextVar("working", default="")


class Fault:
    """The ``nth`` call of a boundary fails, once, when it is of that work (and so of one session)."""

    def __init__(self, work: str, boundary: str, nth: int, number: int) -> None:
        self.work, self.boundary, self.number = work, boundary, number
        self.left = nth
        self.fired = False

    def arm(self, patch: Patch) -> None:
        owner, name = WORKS[self.work]
        patch(owner, name, _marked(getattr(owner, name), self.work))
        owner, name = BOUNDARIES[self.boundary]
        patch(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, original: Any) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._count()
            return original(*args, **kwargs)

        @functools.wraps(original)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            self._count()
            return await original(*args, **kwargs)

        return call_async if inspect.iscoroutinefunction(original) else call

    def _count(self) -> None:
        if _working.get() != self.work or self.fired:
            return
        self.left -= 1
        if self.left == 0:
            self.fired = True
            raise OSError(self.number, os.strerror(self.number))


def _marked(original: Any, work: str) -> Any:
    @functools.wraps(original)
    async def call(*args: Any, **kwargs: Any) -> Any:
        token = _working.set(work)
        try:
            return await original(*args, **kwargs)
        finally:
            _working.reset(token)

    return call


def arm_from_environment() -> None:
    """For a service in a process of its own: arms what ``FAULT`` says: work, boundary, nth, number; by semicolons."""
    if told := os.environ.get("FAULT"):
        work, boundary, nth, number = told.split(";")
        Fault(work, boundary, int(nth), int(number)).arm(setattr)
