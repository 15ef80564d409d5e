"""An archive of a folder or a file, built while it is sent over a blocking socket, with the calling thread's rights.

Its length is not known before its end, so it goes as pieces with a 4-byte big-endian length before each; the one of
length 0 is the end, and a stream that ends without it is broken.
"""

import contextlib
import gzip
import os
import socket
import stat
import tarfile
import time
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from kernel_guest.files import FileRefused, open_file, shown

FORMATS = ("tar.gz", "tar", "zip")
_BUFFER = 256 * 1024
_LEVEL = 1
"""Of compression: the processor is emulated, and the stream is not slow."""
_MAX_DEPTH = 256
"""Folders in one another; each is held open while what is in it is sent."""
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class _Item:
    """A file (with a descriptor), folder or link (with a target) on its way into an archive."""

    name: str
    about: os.stat_result
    descriptor: int | None = None
    target: str | None = None


class _Archive(Protocol):
    def add(self, item: _Item) -> None:
        """Append an item."""
        ...


@contextmanager
def open_root(path: Path) -> Generator[int]:
    """What is to be archived, opened; a link to it is followed. Raises FileRefused."""
    try:
        descriptor = os.open(path, _OPEN | os.O_DIRECTORY)
    except NotADirectoryError:
        descriptor, _ = open_file(path)
    except OSError as error:
        raise FileRefused.of(error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def send_archive(root: int, path: Path, kind: str, target: socket.socket) -> None:
    """Send ``root`` as an archive of one of FORMATS; its entries' names begin with that of ``path``. Blocks.

    What vanishes meanwhile, cannot be read, or is neither file, folder nor link is left out; a file that shrinks is
    filled up with zeros where its size was announced (tar). Raises OSError when what is sent can only be broken off.
    """
    name = path.name if path.name not in {"", ".."} else Path(os.path.realpath(path)).name or "root"
    output = _Pieces(target)
    with _archive(output, kind) as archive:
        for item in _items(root, name):
            archive.add(item)
    output.flush()
    target.sendall(bytes(4))


class _Pieces:
    """Sends what is written as pieces with their lengths, none of them small: headers come in a few bytes each.

    It cannot be asked where it is, so an archive is written to it from front to end.
    """

    def __init__(self, target: socket.socket) -> None:
        self._target = target
        self._buffer = bytearray()

    def write(self, data: Any, /) -> int:
        with memoryview(data) as view:
            self._buffer += view
            count = view.nbytes
        if len(self._buffer) >= _BUFFER:
            self.flush()
        return count

    def flush(self) -> None:
        if self._buffer:
            # Taken out first: what could not be sent is not tried again by whoever closes what writes here.
            data, self._buffer = self._buffer, bytearray()
            self._target.sendall(len(data).to_bytes(4, "big"))
            self._target.sendall(data)

    def close(self) -> None:
        self.flush()


def _items(root: int, name: str) -> Iterator[_Item]:
    """All there is, folders before what is in them, links not followed; each descriptor is closed afterwards."""
    about = os.fstat(root)
    if not stat.S_ISDIR(about.st_mode):
        yield _Item(name, about, root)
        return
    yield _Item(name, about)
    # An explicit stack: how deep folders lie is for whoever made them to say.
    stack = [(name, os.dup(root), iter(_sorted(root)))]
    try:
        while stack:
            prefix, folder, names = stack[-1]
            entry = next(names, None)
            if entry is None:
                os.close(stack.pop()[1])
                continue
            with contextlib.ExitStack() as closing:
                item = _item(folder, entry, f"{prefix}/{entry}")
                if item is None:
                    continue
                if item.descriptor is not None:
                    closing.callback(os.close, item.descriptor)
                if not stat.S_ISDIR(item.about.st_mode):
                    yield item
                    continue
                if len(stack) >= _MAX_DEPTH:
                    raise OSError("folders lie too deep in one another")
                yield _Item(item.name, item.about)
                assert item.descriptor is not None  # noqa: S101  (for the types)
                with contextlib.suppress(OSError):
                    below = iter(_sorted(item.descriptor))
                    stack.append((item.name, os.dup(item.descriptor), below))
    finally:
        for _, folder, _ in stack:
            os.close(folder)


def _sorted(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries)


def _item(folder: int, entry: str, name: str) -> _Item | None:
    try:
        about = os.stat(entry, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(about.st_mode):
            return _Item(name, about, target=os.readlink(entry, dir_fd=folder))
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            return None
        descriptor = os.open(entry, _OPEN | os.O_NOFOLLOW, dir_fd=folder)
    except OSError:
        return None
    about = os.fstat(descriptor)
    if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
        return _Item(name, about, descriptor)
    # Something else has taken its place since.
    os.close(descriptor)
    return None


@contextmanager
def _archive(output: _Pieces, kind: str) -> Generator[_Archive]:
    if kind == "zip":
        with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            yield _Zip(archive)
        return
    with contextlib.ExitStack() as closing:
        stream: Any = output
        if kind == "tar.gz":
            # Not tarfile's own "w|gz", which always compresses as hard as can be.
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=stream, mtime=0)
            stream = closing.enter_context(packed)
        with tarfile.open(fileobj=stream, mode="w|", bufsize=_BUFFER, format=tarfile.PAX_FORMAT) as archive:
            yield _Tar(archive)


class _Tar:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def add(self, item: _Item) -> None:
        header = tarfile.TarInfo(item.name)
        header.mode = stat.S_IMODE(item.about.st_mode)
        header.uid, header.gid = item.about.st_uid, item.about.st_gid
        header.mtime = int(item.about.st_mtime)
        if item.target is not None:
            header.type, header.linkname = tarfile.SYMTYPE, item.target
        elif stat.S_ISDIR(item.about.st_mode):
            header.type = tarfile.DIRTYPE
        if item.descriptor is None:
            self._archive.addfile(header)
        else:
            header.size = item.about.st_size
            self._archive.addfile(header, cast("BinaryIO", _FilledUp(item.descriptor)))
        # It would remember every entry; nobody asks.
        members: list[tarfile.TarInfo] = self._archive.__dict__["members"]
        members.clear()


class _FilledUp:
    """Reads a file, and zeros where it has become shorter than it was."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, count: int) -> bytes:
        pieces: list[bytes] = []
        while count and (piece := os.read(self._descriptor, count)):
            pieces.append(piece)
            count -= len(piece)
        return b"".join([*pieces, bytes(count)])


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def add(self, item: _Item) -> None:
        if item.target is not None:
            return
        folder = item.descriptor is None
        # A zip's names are UTF-8 and nothing else.
        header = zipfile.ZipInfo(shown(item.name) + "/" * folder, _zip_time(item.about.st_mtime))
        header.external_attr = (item.about.st_mode & 0xFFFF) << 16
        if folder:
            header.external_attr |= 0x10  # MS-DOS's own mark of a folder
            header.CRC = header.compress_size = 0
            self._archive.mkdir(header)
            return
        header.compress_type = zipfile.ZIP_DEFLATED
        # Else the archive's level would not count for an entry with a header of its own.
        header._compresslevel = _LEVEL  # noqa: SLF001  # pyright: ignore
        header.file_size = left = item.about.st_size
        assert item.descriptor is not None  # noqa: S101  (for the types)
        with self._archive.open(header, "w") as entry:
            # No more than there was at first: what grows would never end.
            while left and (data := os.read(item.descriptor, min(left, _BUFFER))):
                entry.write(data)
                left -= len(data)


def _zip_time(seconds: float) -> tuple[int, int, int, int, int, int]:
    try:
        moment = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        return (1980, 1, 1, 0, 0, 0)
    if not 1980 <= moment.tm_year <= 2107:
        return (1980, 1, 1, 0, 0, 0)
    return moment[:6]
