"""One session: what its owner can do with it while it lives."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from interpreter.engine.kernel import CALL_TIMEOUT, RESTART_TIMEOUT, Kernel
from interpreter.engine.renewal import Renewal
from interpreter.engine.restore import RestoredGuest
from interpreter.errors import InterpreterError, KernelDied, TransferError
from interpreter.kernel.channels import MAIN
from interpreter.kernel.connection import connect_kernel
from interpreter.kernel.control import AgentEvent
from interpreter.kernel.execution import Execution, ExecutionOptions, OnInput
from interpreter.kernel.files import PIECE, GuestFile, get_file, put_file
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
        guest.connection.share(self.memory.under_way)
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
        return await self.join_context(name)

    async def join_context(self, name: str) -> Kernel:
        """Connect to a kernel that an earlier service has started. Raises GuestRefused when there is none."""
        async with contextlib.AsyncExitStack() as stack:
            key, session = self._renewal.key, self._renewal.session
            context = connect_kernel(self.vsock.connect, key=key, session=session, context=name)
            connection = await stack.enter_async_context(context)
            self._connections[name] = stack.pop_all()
        connection.share(self.memory.under_way)
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
            async with asyncio.timeout(timeout):
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

    async def upload(self, source: Path | bytes, path: str, *, mode: int | None = None) -> int:
        """Write a file of the host, or bytes, to ``path`` in the session; returns its size.

        Relative paths start in the session's home folder. Raises TransferError, MachineDied.
        """
        if isinstance(source, bytes):
            return await self.upload_stream(_pieces_of(source), path, size=len(source), mode=mode or 0o644)
        with _open_regular(source) as file:
            about = os.fstat(file)
            return await self.upload_stream(
                _pieces_from(file), path, size=about.st_size, mode=mode or stat.S_IMODE(about.st_mode)
            )

    async def upload_stream(
        self, pieces: AsyncIterable[bytes], path: str, *, size: int | None = None, mode: int = 0o644
    ) -> int:
        """Write pieces to ``path`` in the session, whole or not at all; returns the size."""
        return await put_file(self.vsock.connect, path, pieces, size=size, mode=mode)

    def open_download(self, path: str) -> contextlib.AbstractAsyncContextManager[GuestFile]:
        """Read ``path`` in the session piece by piece. Raises TransferError, MachineDied."""
        return get_file(self.vsock.connect, path)

    async def download(self, path: str, target: Path | None = None) -> bytes:
        """Read ``path`` in the session into the file ``target`` (whole or not at all), or return its bytes."""
        async with self.open_download(path) as file:
            if target is None:
                return b"".join([piece async for piece in file.pieces])
            await _write_whole(target, file)
        return b""

    def on_agent_event(self, event: AgentEvent) -> None:
        """The engine hands over what the guest's agent told."""
        if kernel := self._kernels.get(str(event.get("context", MAIN))):
            kernel.on_event(event)

    def end(self, error: InterpreterError) -> None:
        """The engine tells that the machine is gone; all who wait for a kernel get KernelDied."""
        for kernel in self._kernels.values():
            kernel.end(error)

    async def close(self) -> None:
        """Close the streams to all kernels but the main one; the engine does the rest."""
        while self._connections:
            await self._connections.popitem()[1].aclose()


@contextlib.contextmanager
def _open_regular(path: Path) -> Generator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise TransferError(f"{path} cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise TransferError(f"{path} is not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


async def _pieces_from(descriptor: int) -> AsyncGenerator[bytes]:
    while piece := await asyncio.to_thread(os.read, descriptor, PIECE):
        yield piece


async def _pieces_of(data: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


async def _write_whole(target: Path, file: GuestFile) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("xb") as output:
            async for piece in file.pieces:
                await asyncio.to_thread(output.write, piece)
        partial.replace(target)
    except OSError as error:
        raise TransferError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
