"""Files in and out, over blocking sockets in a thread: a fixed buffer, never the whole file.

The agent is root, the files are the user's. So each thread takes the user's rights on files (setfsuid(2), which
counts for one thread) while it works: a link that the user made leads nowhere that the user could not go.
"""

import ctypes
import errno
import os
import secrets
import socket
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernel_guest.frames import FrameError, decode

_BUFFER = 256 * 1024
_MAX_WANTED = 1024
_CODES = {
    errno.ENOENT: "not_found",
    errno.EEXIST: "exists",
    errno.EISDIR: "is_a_directory",
    errno.ENOTDIR: "not_a_directory",
    errno.ENOTEMPTY: "not_empty",
    errno.ENOSPC: "no_space",
    errno.EDQUOT: "no_space",
    errno.EFBIG: "no_space",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
}
_RENAME_NOREPLACE = 1
_AT_FDCWD = -100
_LIBC = ctypes.CDLL(None, use_errno=True)


class FileRefused(Exception):
    """A request about a file that is refused, with the code that the host knows."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(shown(message))
        self.code = code

    @classmethod
    def of(cls, error: OSError) -> "FileRefused":
        """What an error of the system comes to."""
        return cls(_CODES.get(error.errno or 0, "io_error"), error.strerror or "it failed")


def shown(text: str) -> str:
    """A name, or what holds one, as text for people: a byte that is not UTF-8 is shown as ``\\xff``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def on_wire(name: str) -> str | bytes:
    """A name as the host gets it: text, or the bytes themselves where they are not UTF-8."""
    encoded = os.fsencode(name)
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


@contextmanager
def rights_of(user: int | None) -> Generator[None]:
    """Use the files of ``user`` with that user's rights in this thread; None changes nothing."""
    if user is None:
        yield
        return
    # The group first, while this thread may still change it.
    _LIBC.setfsgid(user)
    _LIBC.setfsuid(user)
    try:
        yield
    finally:
        _LIBC.setfsuid(0)
        _LIBC.setfsgid(0)


def rename(source: Path, target: Path, *, overwrite: bool) -> None:
    """Rename at once; without ``overwrite`` never over something, also not what appears at this moment."""
    if overwrite:
        source.rename(target)
        return
    if _LIBC.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number not in {errno.EINVAL, errno.ENOSYS}:
        raise OSError(number, os.strerror(number), str(target))
    # A file system that does not know how.
    if not source.is_dir() or source.is_symlink():
        os.link(source, target, follow_symlinks=False)
        source.unlink()
        return
    # There a folder has no second name: as near to it as can be.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def receive_file(source: socket.socket, target: Path, *, size: int | None, mode: int, overwrite: bool) -> int:
    """Write what ``source`` sends to ``target``, whole or not at all. Blocks. Raises FileRefused.

    Without ``overwrite`` it is refused when anything is there, at first or when all has come: of many at once one wins.

    With a ``size`` that many bytes are due. Without, pieces come with a 4-byte big-endian length before each, and
    the one of length 0 is the end: a stream that was reset looks to its reader like one that has ended.
    """
    try:
        if not overwrite and os.path.lexists(target):
            raise FileRefused("exists", f"{target} is there already")
        if target.is_dir():
            raise FileRefused("is_a_directory", f"{target} is a folder")
        # Through links, as a shell's redirection would go; the part lies beside the file that a link leads to.
        target = Path(os.path.realpath(target)) if target.is_symlink() else target
        if target.is_symlink():
            raise FileRefused("io_error", f"{target} is a link in a circle")
        _make_parent(target)
        partial = target.parent / f".{target.name[:60]}.{secrets.token_hex(4)}.part"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            received = _copy_pieces(source, descriptor) if size is None else _copy_in(source, descriptor, size)
            os.fchmod(descriptor, mode & 0o777)
            rename(partial, target, overwrite=overwrite)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileRefused.of(error) from error
    return received


def open_file(path: Path) -> tuple[int, dict[str, Any]]:
    """Open a regular file for reading: its descriptor, and its size, mode and times. Raises FileRefused."""
    try:
        # O_NONBLOCK: opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FileRefused.of(error) from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        folder = stat.S_ISDIR(about.st_mode)
        raise FileRefused("is_a_directory" if folder else "not_a_file", f"{path} is not a regular file")
    return descriptor, {
        "size": about.st_size,
        "mode": stat.S_IMODE(about.st_mode),
        "mtime_ns": about.st_mtime_ns,
        "ctime_ns": about.st_ctime_ns,
    }


def wanted_part(source: socket.socket, size: int) -> tuple[int, int] | None:
    """Which part of a file of ``size`` bytes the host asks for: its start and length; None when it leaves. Blocks."""
    length = int.from_bytes(source.recv(4, socket.MSG_WAITALL), "big")
    if not 0 < length <= _MAX_WANTED:
        return None
    match decode(source.recv(length, socket.MSG_WAITALL)).body:
        case {"start": int(start), "count": int(count)} if start >= 0 and count >= 0 and start + count <= size:
            return start, count
        case _:
            raise FrameError("a file has no such part")


def send_file(descriptor: int, target: socket.socket, size: int, *, start: int = 0) -> None:
    """Send ``size`` bytes of an open file, fewer when it has become shorter. Blocks. Raises OSError."""
    os.lseek(descriptor, start, os.SEEK_SET)
    buffer = memoryview(bytearray(_BUFFER))
    while size:
        count = os.readv(descriptor, [buffer[: min(size, _BUFFER)]])
        if count == 0:
            return
        target.sendall(buffer[:count])
        size -= count


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent)) from None


def _copy_pieces(source: socket.socket, descriptor: int) -> int:
    received = 0
    while True:
        prefix = source.recv(4, socket.MSG_WAITALL)
        if len(prefix) < 4:
            raise FileRefused("size_mismatch", f"the upload broke off after {received} bytes")
        length = int.from_bytes(prefix, "big")
        if length == 0:
            return received
        received += _copy_in(source, descriptor, length)


def _copy_in(source: socket.socket, descriptor: int, size: int) -> int:
    buffer = memoryview(bytearray(min(_BUFFER, size)))
    left = size
    while left:
        count = source.recv_into(buffer[: min(left, _BUFFER)])
        if count == 0:
            raise FileRefused("size_mismatch", f"{size - left} bytes came, {size} were announced")
        _write_all(descriptor, buffer[:count])
        left -= count
    return size


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
