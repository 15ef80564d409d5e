"""A session's files and folders. Relative paths start in the session's home folder."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import Busy, FileExists, FileNotFound, TransferError
from interpreter.kernel import tree
from interpreter.kernel.archive import ArchiveFormat, open_archive
from interpreter.kernel.control import AgentControl
from interpreter.kernel.files import PIECE, GuestFile, get_file, put_file
from interpreter.kernel.framing import Connect
from interpreter.kernel.versions import EXCLUSIVE_PUT, knows
from interpreter.saving import save

MAX_TRANSFERS: Final = 48
"""Of one session at once: each holds a thread of the agent, which has 64 for them and for all else with files."""
_TURN_SECONDS: Final = 30.0


class SessionFiles:
    """The files of one session. All that is done with them raises TransferError, GuestUnresponsive, MachineDied.

    Transfers past MAX_TRANSFERS wait for one to end, and raise Busy when none does.
    """

    def __init__(self, control: AgentControl, connect: Connect) -> None:
        self._control = control
        self._connect = connect
        self._turns = asyncio.Semaphore(MAX_TRANSFERS)

    async def upload(self, source: Path | bytes, path: str, *, mode: int | None = None, overwrite: bool = True) -> int:
        """Write a file of the host, or bytes, to ``path``, whole or not at all; returns its size in bytes.

        Without ``overwrite`` what is there stays, and FileExists is raised; of many at once one wins.
        """
        if isinstance(source, bytes):
            return await self.upload_stream(
                _pieces_of(source), path, size=len(source), mode=mode or 0o644, overwrite=overwrite
            )
        with _open_regular(source) as file:
            about = os.fstat(file)
            return await self.upload_stream(
                _pieces_from(file),
                path,
                size=about.st_size,
                mode=mode or stat.S_IMODE(about.st_mode),
                overwrite=overwrite,
            )

    async def upload_stream(
        self,
        pieces: AsyncIterable[bytes],
        path: str,
        *,
        size: int | None = None,
        mode: int = 0o644,
        overwrite: bool = True,
    ) -> int:
        """Write pieces to ``path``, whole or not at all; returns the size in bytes. See ``upload``."""
        version = self._control.version
        if not overwrite and not knows(EXCLUSIVE_PUT, version):
            # As near to it as an older agent comes.
            await self._check_free(path)
        async with self._turn():
            return await put_file(
                self._connect, path, pieces, size=size, mode=mode, overwrite=overwrite, version=version
            )

    async def _check_free(self, path: str) -> None:
        with contextlib.suppress(FileNotFound):
            await self.describe(path)
            raise FileExists(f"{path} is there already")

    @asynccontextmanager
    async def open_download(self, path: str) -> AsyncGenerator[GuestFile]:
        """Read ``path`` piece by piece."""
        async with self._turn(), get_file(self._connect, path, version=self._control.version) as file:
            yield file

    async def download(self, path: str, target: Path | None = None) -> bytes:
        """Read ``path`` into the host's file ``target``, whole or not at all, or return its bytes.

        In a folder of the host's it has its own name.
        """
        async with self.open_download(path) as file:
            if target is None:
                return b"".join([piece async for piece in file.pieces])
            try:
                await save(file.pieces, target / path.rstrip("/").rsplit("/", 1)[-1] if target.is_dir() else target)
            except OSError as error:
                raise TransferError(f"{target} cannot be written: {error.strerror}") from None
        return b""

    @asynccontextmanager
    async def open_archive(self, path: str, output: ArchiveFormat = "tar.gz") -> AsyncGenerator[AsyncIterable[bytes]]:
        """Read a folder as an archive, piece by piece, while it is made; see `kernel.archive`."""
        async with self._turn(), open_archive(self._connect, path, output, version=self._control.version) as pieces:
            yield pieces

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        try:
            async with deadline(_TURN_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise Busy(f"{MAX_TRANSFERS} files of the session are on their way, and none came to its end") from None
        try:
            yield
        finally:
            self._turns.release()

    async def list_folder(
        self, path: str = ".", *, after: str = "", limit: int = tree.MAX_PAGE, hidden: bool = True
    ) -> tree.Page:
        """The first ``limit`` entries of a folder whose names come after ``after``; see `kernel.tree`."""
        return await tree.list_folder(self._control, path, after=after, limit=limit, hidden=hidden)

    async def describe(self, path: str) -> tree.Entry:
        """What lies at ``path``; of a link the link itself."""
        return await tree.describe(self._control, path)

    async def make_folder(self, path: str) -> tree.Entry:
        """Make a folder and those on the way to it; one that is there will do."""
        return await tree.make_folder(self._control, path)

    async def move(self, source: str, target: str, *, overwrite: bool = False) -> tree.Entry:
        """Move ``source`` to be ``target``, whole or not at all; with ``overwrite`` in place of a file or link."""
        return await tree.move(self._control, source, target, overwrite=overwrite)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link or a folder; one that is not empty only with ``recursive``."""
        await tree.remove(self._control, path, recursive=recursive)


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
