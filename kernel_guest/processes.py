"""The agent's children: the zygote, the kernels that it forks, and orphans that nobody else waits for."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kernel_guest.groups import Group

_PR_SET_CHILD_SUBREAPER = 36
_START_SECONDS = 120.0
_WAKE_AFTER_SECONDS = (0.1, 0.5, 2.0)
_STAGE_SECONDS = 1.0


def become_reaper() -> None:
    """Inherit the orphans of all descendants, as process 1 does anyway."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Reaper:
    """Waits for every child that ends, so that none stays a zombie, and tells who asked for it."""

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[int], None]] = {}
        self._unclaimed: dict[int, int] = {}

    def start(self) -> None:
        """Begin, in the running loop."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def watch(self, pid: int, callback: Callable[[int], None], *, new: bool = False) -> None:
        """Call back with the status (negative: a signal) when ``pid`` has ended, also if it has already.

        ``new``: it was started in this very step of the loop, so a status that waits is of an earlier process.
        """
        if new:
            self._unclaimed.pop(pid, None)
        if (status := self._unclaimed.pop(pid, None)) is not None:
            callback(status)
        else:
            self._watched[pid] = callback

    def reap(self) -> None:
        """Take the status of all children that have ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if callback := self._watched.pop(pid, None):
                callback(code)
            else:
                # A kernel can end before the agent has read its number; few can be in that state.
                self._unclaimed[pid] = code
                while len(self._unclaimed) > 64:
                    self._unclaimed.pop(next(iter(self._unclaimed)))


@dataclass(frozen=True, slots=True)
class KernelIdentity:
    """What a kernel is started with, or renewed to."""

    key: bytes
    session: str
    environment: dict[str, str]

    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"key": self.key.decode("ascii"), "session": self.session, "env": self.environment}


class KernelProcess:
    """One kernel: its process, and the socket over which it is renewed."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        self._asking = asyncio.Lock()
        self._looking: asyncio.Task[str] | None = None
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        """Wait until its sockets are bound. Raises ConnectionError when it ended before."""
        await self._answer()

    async def renew(self, identity: KernelIdentity) -> None:
        """Give it a new identity and new random state, whatever it is doing."""
        await self._ask(identity.fields())

    async def freeze(self) -> None:
        """Collect garbage and keep what is left out of later collections; done once, before the snapshot."""
        await self._ask({"freeze": True})

    def interrupt(self) -> None:
        """SIGINT to the kernel and what it has started."""
        self._signal(signal.SIGINT)
        for seconds in _WAKE_AFTER_SECONDS:
            asyncio.get_running_loop().call_later(seconds, self._wake)

    async def progress(self) -> dict[str, Any]:
        """How far it is: the processor time of its main thread, in clock ticks, and where that one is.

        ``stage`` is as the kernel tells it (see ``interrupts.Stage``). One that cannot tell is in a call that holds
        Python's lock.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._stage())
        # An answer that is late is waited for the next time: who asks something else then must not get it.
        await asyncio.wait({self._looking}, timeout=_STAGE_SECONDS)
        told = self._looking.done() and not self._looking.cancelled()
        return {"stage": self._looking.result() if told else "calls", "ticks": _ticks(self.pid)}

    async def _stage(self) -> str:
        try:
            return str((await self._ask({"stage": True})).get("stage"))
        except OSError:
            return "ended"

    async def end(self, seconds: float) -> None:
        """Interrupt its code and have it end as a program does, with what is open closed; after ``seconds`` kill it.

        What it has started ends with it.
        """
        try:
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(seconds):
                    self.interrupt()
                    await self._ask({"end": True})
                    await asyncio.shield(self.exited)
        finally:
            # Also when the wait for it is broken off.
            await self.kill()

    async def kill(self) -> None:
        """End it and what it has started, and wait for that."""
        # Also when it has ended: its group has its number for as long as there is anybody in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self.exited

    def close(self) -> None:
        """Let go of the socket."""
        if self._looking is not None:
            self._looking.cancel()
        self._channel.close()

    def _signal(self, number: int) -> None:
        if not self.exited.done():
            os.killpg(self.pid, number)

    def _wake(self) -> None:
        if not self.exited.done():
            os.kill(self.pid, signal.SIGURG)

    async def _ask(self, fields: dict[str, Any]) -> dict[str, Any]:
        # One at a time: who asks gets the answer to it.
        async with self._asking:
            await asyncio.get_running_loop().sock_sendall(self._channel, json.dumps(fields).encode())
            return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        answer = await asyncio.get_running_loop().sock_recv(self._channel, 64)
        if not answer:
            raise ConnectionResetError("the kernel ended")
        # The kernel's code can say here what it likes.
        told: Any = None
        with contextlib.suppress(ValueError):
            told = json.loads(answer)
        return cast("dict[str, Any]", told) if isinstance(told, dict) else {}


def _ticks(pid: int) -> int:
    """Processor time of a process's main thread so far; none when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/task/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    # proc(5): utime and stime, the 14th and 15th field; the name before these has the second.
    return int(fields[11]) + int(fields[12])


class Zygote:
    """Starts the zygote when there is none, and has it fork kernels."""

    def __init__(self, reaper: Reaper, warmup: Path, *, drop: bool, environment: dict[str, str]) -> None:
        self._reaper = reaper
        self._warmup = warmup
        self._drop = drop
        self._environment = environment
        self._requests: socket.socket | None = None
        # Of two that wait for an answer on one socket the loop forgets the first.
        self._asking = asyncio.Lock()

    @property
    def reaper(self) -> Reaper:
        """What waits for the agent's children."""
        return self._reaper

    async def fork(self, folder: Path, identity: KernelIdentity, group: Group) -> KernelProcess:
        """A new kernel with its sockets in ``folder``, ready for messages. Raises ConnectionError, TimeoutError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        try:
            request = {"folder": str(folder), "group": str(group.folder or ""), **identity.fields()}
            # To its end also when nobody waits any more: the next one must not read this one's answer.
            asking = asyncio.create_task(self._ask(request, theirs))
            kernel = KernelProcess(await asyncio.shield(asking), ours)
        except BaseException:
            ours.close()
            raise
        self._reaper.watch(kernel.pid, kernel.exited.set_result)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await kernel.ready()
        except TimeoutError:
            await kernel.kill()
            raise TimeoutError(f"the kernel was not ready within {_START_SECONDS:g} s") from None
        return kernel

    def close(self) -> None:
        """Let the zygote end."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    async def _ask(self, request: dict[str, str], company: socket.socket) -> int:
        with company:
            async with self._asking:
                requests = await self._started()
                socket.send_fds(requests, [json.dumps(request).encode()], [company.fileno()])
                answer = await asyncio.get_running_loop().sock_recv(requests, 256)
        if not answer:
            raise ConnectionResetError("the zygote ended")
        return int(json.loads(answer)["pid"])

    async def _started(self) -> socket.socket:
        if self._requests is not None:
            return self._requests
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            descriptor = theirs.fileno()
            os.set_inheritable(descriptor, True)
            # As root it must not import what the user may write.
            program = [sys.executable, "-s", "-m", "kernel_guest.zygote"]
            command = [*program, str(self._warmup), "drop" if self._drop else "keep"]
            actions = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, descriptor, 3),
            ]
            pid = os.posix_spawn(  # noqa: ASYNC221  (it returns at once)
                sys.executable, command, self._environment, file_actions=actions
            )
        self._requests = ours

        def ended(_: int) -> None:
            if self._requests is ours:
                self.close()

        self._reaper.watch(pid, ended)
        if not await asyncio.get_running_loop().sock_recv(ours, 256):
            raise ConnectionResetError("the zygote ended while it warmed up")
        return ours
