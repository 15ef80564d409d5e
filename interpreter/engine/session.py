"""One session: what its owner can do with it while it lives."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from interpreter.deadline import deadline
from interpreter.engine.files import SessionFiles
from interpreter.engine.kernel import CALL_TIMEOUT, RESTART_TIMEOUT, Kernel
from interpreter.engine.renewal import Renewal
from interpreter.engine.restore import RestoredGuest
from interpreter.errors import InterpreterError, KernelDied
from interpreter.kernel.channels import MAIN
from interpreter.kernel.connection import connect_kernel
from interpreter.kernel.control import AgentEvent
from interpreter.kernel.execution import Execution, ExecutionOptions, OnInput
from interpreter.kernel.memory import SessionMemory

_MEMORY: Final = 96 * 1024 * 1024


class Session:
    """A running session. Made by ``Engine.session``; everything in it ends when that block is left."""

    def __init__(self, session_id: str, template: str, guest: RestoredGuest, renewal: Renewal) -> None:
        self.id = session_id
        self.template = template
        self.vsock = guest.vsock
        """Streams to and from the guest: ``await session.vsock.connect(port)``, ``session.vsock.listen(port)``."""
        self.control = guest.control
        """Calls to the guest's agent."""
        self.timings = guest.timings.marks
        """Seconds from the start of the restore to each of its stages."""
        self.files = SessionFiles(guest.control, guest.vsock.connect)
        """Its files and folders."""
        self._machine = guest.machine
        self.machine_pid = guest.machine.pid
        """QEMU's process id."""
        self.device_pid = guest.vsock.pid
        """The process id of its vsock device's process."""
        self.device_before_ns = guest.device_before_ns
        """Processor time of the device's earlier processes."""
        self.main = Kernel(session_id, MAIN, guest.control, guest.connection)
        """The kernel that every session has from the start."""
        self.memory = SessionMemory(_MEMORY)
        """What this process holds for it."""
        guest.connection.share(self.memory)
        self._renewal = renewal
        self._kernels = {MAIN: self.main}
        self._connections: dict[str, contextlib.AsyncExitStack] = {}

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """All kernels, by the name of their context."""
        return self._kernels

    def execute(
        self,
        code: str,
        *,
        silent: bool = False,
        store_history: bool = True,
        timeout: float | None = None,
        on_input: OnInput | None = None,
    ) -> Execution:
        """Run code in the main kernel; see `Kernel.execute`."""
        options = ExecutionOptions(silent=silent, store_history=store_history, timeout=timeout, on_input=on_input)
        return self.main.execute(code, options)

    async def kernel_info(self) -> dict[str, object]:
        """The main kernel's answer to ``kernel_info_request``."""
        return await self.main.info()

    async def interrupt(self) -> None:
        """Interrupt the code that runs in the main kernel, as Ctrl-C does."""
        await self.main.interrupt()

    async def restart(self) -> None:
        """Replace the main kernel by a new one; its variables are gone, files stay."""
        await self.main.restart()

    async def open_context(self, name: str) -> Kernel:
        """Start one more kernel. Raises GuestRefused, GuestUnresponsive."""
        await self.control.call("open_context", timeout=RESTART_TIMEOUT, context=name)
        try:
            return await self.join_context(name)
        except InterpreterError:
            # Nobody knows of it, then.
            with contextlib.suppress(InterpreterError):
                await self.control.call("close_context", timeout=CALL_TIMEOUT, context=name)
            raise

    async def join_context(self, name: str) -> Kernel:
        """Connect to a kernel that an earlier service has started. Raises GuestRefused when there is none."""
        async with contextlib.AsyncExitStack() as stack:
            key, session = self._renewal.key, self._renewal.session
            context = connect_kernel(self.vsock.connect, key=key, session=session, context=name)
            connection = await stack.enter_async_context(context)
            self._connections[name] = stack.pop_all()
        connection.share(self.memory)
        kernel = self._kernels[name] = Kernel(self.id, name, self.control, connection)
        return kernel

    async def close_context(self, name: str) -> None:
        """End a kernel other than the main one. Raises GuestRefused."""
        kernel = self._kernels.pop(name)
        kernel.end(KernelDied("the context was closed"))
        await self._connections.pop(name).aclose()
        await self.control.call("close_context", timeout=CALL_TIMEOUT, context=name)

    async def ping(self, *, timeout: float) -> None:
        """Have the guest's agent answer within ``timeout`` seconds. Raises GuestUnresponsive, MachineDied."""
        await self.control.call("ping", timeout=timeout)

    async def machine_words(self, *, timeout: float) -> str | None:
        """The last words of the machine, when it ends within ``timeout`` seconds; None when it does not."""
        try:
            async with deadline(timeout):
                return await self._machine.wait_ended()
        except TimeoutError:
            return None

    async def set_environment(self, environment: dict[str, str]) -> None:
        """Set variables in the running kernels and in those that are started later."""
        self._renewal = replace(self._renewal, environment={**self._renewal.environment, **environment})
        await self.control.call("renew", timeout=CALL_TIMEOUT, **self._renewal.arguments())

    @property
    def key(self) -> bytes:
        """What signs the messages of all its kernels; empty: they are not signed."""
        return self._renewal.key

    async def set_key(self, key: bytes) -> None:
        """Have all its kernels sign with another key from now on; what is under way to them meanwhile may be ignored.

        Raises GuestUnresponsive, MachineDied.
        """
        codecs = [kernel.connection.codec for kernel in self._kernels.values()]
        for codec in codecs:
            codec.accept(key)
        self._renewal = replace(self._renewal, key=key)
        await self.control.call("renew", timeout=CALL_TIMEOUT, **self._renewal.arguments())
        for codec in codecs:
            codec.sign_with(key)

    async def upload(self, source: Path | bytes, path: str, *, mode: int | None = None, overwrite: bool = True) -> int:
        """Write a file of the host, or bytes, to ``path`` in the session; see `SessionFiles.upload`."""
        return await self.files.upload(source, path, mode=mode, overwrite=overwrite)

    async def download(self, path: str, target: Path | None = None) -> bytes:
        """Read ``path`` in the session; see `SessionFiles.download`."""
        return await self.files.download(path, target)

    def on_agent_event(self, event: AgentEvent) -> None:
        """The engine hands over what the guest's agent told."""
        if kernel := self._kernels.get(str(event.get("context", MAIN))):
            kernel.on_event(event)

    def end(self, error: InterpreterError) -> None:
        """The engine tells that the machine is gone; all who wait for a kernel get SessionEnded."""
        for kernel in self._kernels.values():
            kernel.end(error)

    async def close(self) -> None:
        """Close the streams to all kernels but the main one; the engine does the rest."""
        while self._connections:
            await self._connections.popitem()[1].aclose()
