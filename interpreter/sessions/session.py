"""One session: what its owner can do with it while it lives."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from pathlib import Path
from typing import Final

import structlog

from interpreter.errors import InterpreterError, KernelDied, TransferError
from interpreter.kernel.control import Event
from interpreter.kernel.execution import Execution, OnInput
from interpreter.kernel.files import PIECE, GuestFile, get_file, put_file
from interpreter.sessions.restore import RestoredGuest

log = structlog.get_logger(__name__)

_CALL_TIMEOUT: Final = 10.0
_RESTART_TIMEOUT: Final = 120.0
"""A kernel is forked from a warm process; only when the guest has lost that one must it import all anew."""


class Session:
    """A running session. Made by ``Engine.session``; everything in it ends when that block is left."""

    def __init__(self, session_id: str, template: str, guest: RestoredGuest) -> None:
        self.id = session_id
        self.template = template
        self.vsock = guest.vsock
        """Streams to and from the guest: ``await session.vsock.connect(port)``, ``session.vsock.listen(port)``."""
        self.timings = guest.timings.marks
        """Seconds from the start of the restore to each of its stages."""
        self.machine_pid = guest.machine.pid
        """QEMU's process id."""
        self._control = guest.control
        self._connection = guest.connection
        self._expected_exits = 0

    def execute(
        self,
        code: str,
        *,
        silent: bool = False,
        store_history: bool = True,
        timeout: float | None = None,
        on_input: OnInput | None = None,
    ) -> Execution:
        """Run code in the kernel: ``await`` it for the Result, or iterate over the outputs as they come.

        ``timeout`` is in seconds; past it the code is interrupted, and if that does not help the kernel is
        restarted. Awaiting raises KernelDied, ExecutionTimeout, GuestMisbehaved; an exception in the code is
        no error here but in the Result.
        """
        return Execution(
            self._connection,
            self,
            code,
            silent=silent,
            store_history=store_history,
            timeout=timeout,
            on_input=on_input,
        )

    async def kernel_info(self) -> dict[str, object]:
        """The kernel's answer to ``kernel_info_request``: versions, language, features."""
        request = self._connection.codec.request("kernel_info_request", {})
        return (await self._connection.ask("shell", request, timeout=_CALL_TIMEOUT)).content

    async def interrupt(self) -> None:
        """Interrupt the code that runs now, as Ctrl-C does. Raises GuestUnresponsive, MachineDied."""
        await self._control.call("interrupt", timeout=_CALL_TIMEOUT)

    async def restart(self) -> None:
        """Replace the kernel by a new one; its variables are gone, files stay. Raises GuestUnresponsive."""
        self._expected_exits += 1
        await self._control.call("restart", timeout=_RESTART_TIMEOUT)
        self._connection.kernel_restarted()

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

    def on_agent_event(self, event: Event) -> None:
        """The engine hands over what the guest's agent told."""
        if event.get("event") != "kernel_exited":
            return
        if self._expected_exits:
            self._expected_exits -= 1
            return
        log.info("kernel died", session=self.id, status=event.get("status"))
        error = KernelDied(f"the kernel died ({_cause(event.get('status'))})", hint="Restart it; files are kept")
        self._connection.kernel_died(error)

    def end(self, error: InterpreterError) -> None:
        """The engine tells that the machine is gone; all who wait for the kernel get KernelDied."""
        self._connection.end(error if isinstance(error, KernelDied) else KernelDied(error.message, hint=error.hint))


def _cause(status: object) -> str:
    if not isinstance(status, int):
        return "for an unknown reason"
    if status == -9:
        return "killed by signal 9; when it was not told to, the session is out of memory"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


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
