"""A context: one kernel with the streams to it. A session has one from the start, "main", and may open more."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq

from kernel_guest.frames import Frame, Kind, encode
from kernel_guest.groups import Group
from kernel_guest.processes import KernelIdentity, KernelProcess, Zygote
from kernel_guest.relay import Relay

MAIN = "main"

_GRACE_SECONDS = 5.0
"""How long a kernel may take to close its files and what else a program does at its end, before it is killed."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are: the kernel's sockets, the home folder, the control group of all that the user runs, and whose
    these are (None: the agent's own, and no control groups)."""

    kernel: Path
    home: Path
    user: int | None
    groups: Path | None = None


class NoKernel(Exception):
    """The context's kernel has died, and none was started since."""


class Context:
    """One kernel, behind the same sockets over all its restarts. ``tell`` takes what happens to it, as events."""

    def __init__(self, name: str, places: Places, zygote: Zygote, tell: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self.folder = places.kernel if name == MAIN else places.kernel / f"context-{name}"
        self._user = places.user
        self._group = Group.make(places.groups, f"kernel-{name}", whole=True)
        self._zygote = zygote
        self._tell = tell
        self._kernel: KernelProcess | None = None
        self._relays: set[Relay] = set()
        self._spare: Relay | None = None
        self._restarting = asyncio.Lock()

    async def start(self, identity: KernelIdentity) -> int:
        """Start the kernel and wait until it takes messages; returns its process id."""
        if not self.folder.exists():
            self.folder.mkdir(mode=0o700)
            if self._user is not None:
                os.chown(self.folder, self._user, self._user)
        kernel = await self._zygote.fork(self.folder, identity, self._group)
        self._kernel = kernel
        kernel.exited.add_done_callback(lambda exited: self._exited(kernel, exited.result()))
        for relay in self._relays:
            relay.connect()
        for relay in list(self._relays):
            await relay.welcomed()
        self._tell({"event": "kernel_started", "context": self.name, "pid": kernel.pid})
        return kernel.pid

    async def restart(self, identity: KernelIdentity) -> int:
        """Replace the kernel by a new one; returns its process id."""
        # Two at once would both start a kernel, on the same sockets.
        async with self._restarting:
            await self.stop()
            return await self.start(identity)

    async def stop(self) -> None:
        """End the kernel, if there is one, and all that its code has started; it is asked before it is killed."""
        if self._kernel is not None:
            # What it says from here on belongs to nobody's request, and a client that lags behind must not hold it up.
            for relay in self._relays:
                relay.disconnect()
            await self._kernel.end(_GRACE_SECONDS)
        self._group.kill()

    async def close(self) -> None:
        """End it for good."""
        await self.stop()
        await self._group.remove()

    def interrupt(self) -> None:
        """Interrupt what runs. Raises NoKernel."""
        self.running().interrupt()

    async def progress(self) -> dict[str, Any]:
        """How far the kernel is; see `KernelProcess.progress`. Raises NoKernel."""
        return await self.running().progress()

    async def renew(self, identity: KernelIdentity) -> None:
        """Give the running kernel a new identity; one that has died gets it when it is started again."""
        if self._kernel is not None:
            await self._kernel.renew(identity)

    async def prepare_clones(self, zmq_context: zmq.Context[Any]) -> None:
        """Do ahead what every clone would have to do first: connect to the kernel, put its objects aside."""
        self._spare = Relay(zmq_context, self.folder)
        self._relays.add(self._spare)
        self._spare.connect()
        await self._spare.welcomed()
        await self.running().freeze()

    async def relay(
        self,
        zmq_context: zmq.Context[Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        iopub: bool = True,
        dead: bool = False,
    ) -> None:
        """Relay between a stream and the kernel until the stream ends; with ``dead`` also when there is none yet.

        Raises NoKernel, TimeoutError.
        """
        alive = self._kernel is not None
        if not dead:
            self.running()
        if iopub:
            relay, self._spare = self._spare or Relay(zmq_context, self.folder), None
        else:
            relay = Relay(zmq_context, self.folder, iopub=False)
        self._relays.add(relay)
        try:
            answer = encode(Frame(Kind.OK, {} if alive else {"dead": True}))
            await relay.run(reader, writer, lambda: writer.write(answer), alive=alive)
        finally:
            self._relays.discard(relay)

    def running(self) -> KernelProcess:
        """The kernel. Raises NoKernel."""
        if self._kernel is None:
            raise NoKernel("the kernel has died; restart it")
        return self._kernel

    def _exited(self, kernel: KernelProcess, status: int) -> None:
        kernel.close()
        if self._kernel is kernel:
            self._kernel = None
        for relay in self._relays:
            relay.disconnect()
        event: dict[str, Any] = {"event": "kernel_exited", "context": self.name, "pid": kernel.pid, "status": status}
        if self._group.killed_for_memory():
            event["cause"] = "memory"
        self._tell(event)
