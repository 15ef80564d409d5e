"""Files of a session: up, down, list, look, read, make, move, remove, archive."""

import asyncio
import stat
from collections.abc import AsyncGenerator, AsyncIterable
from pathlib import Path
from typing import Final, Literal

from interpreter.client.models import FileInfo, FilePage, FileText, Uploaded
from interpreter.client.names import in_json
from interpreter.client.pieces import Progress, counted, cut, read_file
from interpreter.client.session_calls import SessionCalls
from interpreter.client.transport import LONG_SECONDS, Call
from interpreter.saving import save

ArchiveFormat = Literal["tar.gz", "tar", "zip"]

TEXT_LIMIT: Final = 100_000
_FILE_PAGE: Final = 1000


class SessionFiles(SessionCalls):
    """Part of `AsyncSession`. Paths are the session's; relative ones start in its home folder.

    A name that is not UTF-8 has lone surrogates where its bytes are not, as Python's own functions have it
    (`os.fsdecode`); see `FileInfo.exact_name`.
    """

    async def upload(
        self,
        source: Path | bytes | AsyncIterable[bytes],
        path: str,
        *,
        overwrite: bool = True,
        progress: Progress | None = None,
    ) -> int:
        """Write a file, whole or not at all; returns its size in bytes. Folders on the way are made.

        What is not to be overwritten raises FileExists. Raises OSError for a file that cannot be read.
        """
        size = len(source) if isinstance(source, bytes) else None
        if isinstance(source, Path):
            about = await asyncio.to_thread(source.stat)
            # A pipe tells no size, and can be read once.
            size = about.st_size if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode) else None

        def content() -> AsyncIterable[bytes]:
            if isinstance(source, Path):
                return counted(read_file(source, size), size, progress)
            return counted(cut(source) if isinstance(source, bytes) else source, size, progress)

        call = Call(
            "PUT",
            f"{self._path}/files/content",
            {"path": path, "overwrite": overwrite},
            content=content,
            headers={"Content-Type": "application/octet-stream"}
            | ({} if size is None else {"Content-Length": f"{size}"}),
            once=size is None,
            seconds=LONG_SECONDS,
        )
        return (await self._transport.get(call, Uploaded)).size

    async def download(self, path: str, target: Path | int | None = None, *, progress: Progress | None = None) -> bytes:
        """A file's bytes. With ``target`` they are written there, whole or not at all, and none are returned.

        In a folder the file has its own name; an open descriptor gets the bytes as they come. Raises OSError when
        ``target`` cannot be written.
        """
        return await self._fetch(
            self._call("GET", "files", "content", params={"path": path}), _in_folder(target, path), progress
        )

    async def archive(self, path: str, target: Path, format: ArchiveFormat = "tar.gz") -> None:  # noqa: A002
        """Write an archive of a folder (or file) to ``target``, whole or not at all. A zip leaves links out.

        In a folder it is called as the folder is, ``files`` for the home folder, with the format. Raises OSError when
        ``target`` cannot be written.
        """
        call = self._call("GET", "files", "archive", params={"path": path, "format": format}, seconds=LONG_SECONDS)
        await self._fetch(call, _in_folder(target, path, f".{format}"), None)

    async def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        """The first ``limit`` bytes of a file as text (at most 1,000,000); what is no UTF-8 is replaced."""
        call = self._call("GET", "files", "text", params={"path": path, "limit": limit})
        return (await self._transport.get(call, FileText)).text

    async def list_files(self, path: str = ".", hidden: bool = True) -> AsyncGenerator[FileInfo]:
        """A folder's entries by name; without ``hidden`` no dot files."""
        after: str | None = None
        while True:
            params = {"path": path, "hidden": hidden, "limit": _FILE_PAGE, "after": after}
            page = await self._transport.get(self._call("GET", "files", params=params), FilePage)
            for entry in page.entries:
                yield entry
            if page.next is None:
                return
            after = page.next

    async def describe(self, path: str) -> FileInfo:
        """A file or folder; a link is not followed. Raises FileNotFound."""
        return await self._transport.get(self._call("GET", "files", "entry", params={"path": path}), FileInfo)

    async def make_folder(self, path: str) -> FileInfo:
        """Make a folder and those on the way to it; one that is there will do."""
        return await self._transport.get(self._call("POST", "files", "folders", body={"path": in_json(path)}), FileInfo)

    async def move(self, source: str, target: str, overwrite: bool = False) -> FileInfo:
        """Move or rename. What lies at the target is replaced only with ``overwrite``, else raises FileExists."""
        body = {"source": in_json(source), "target": in_json(target), "overwrite": overwrite}
        return await self._transport.get(self._call("POST", "files", "move", body=body, seconds=LONG_SECONDS), FileInfo)

    async def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, a link or a folder; one that is not empty only with ``recursive``."""
        params = {"path": path, "recursive": recursive}
        await self._transport.send(self._call("DELETE", "files", params=params, seconds=LONG_SECONDS))

    async def _fetch(self, call: Call, target: Path | int | None, progress: Progress | None) -> bytes:
        # As it is: what a proxy has packed would have another length than the file.
        async with self._transport.open(call, headers={"Accept-Encoding": "identity"}) as response:
            length = response.headers.get("content-length", "")
            pieces = counted(response.aiter_bytes(), int(length) if length.isdecimal() else None, progress)
            if target is None:
                return b"".join([piece async for piece in pieces])
            await save(pieces, target)
            return b""


def _in_folder(target: Path | int | None, path: str, suffix: str = "") -> Path | int | None:
    if not isinstance(target, Path) or not target.is_dir():
        return target
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return target / f"{'files' if name in {'', '.', '..'} else name}{suffix}"
