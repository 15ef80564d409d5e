"""Folders for kernels' sockets: one each, for its owner alone, and none is left behind for long."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from interpreter.errors import HostError

_PREFIX: Final = "interpreter-kernel-"
_LONGEST: Final = 80
"""Characters that the folder above may have: a socket's whole path has 107 at most."""


@contextmanager
def socket_folder() -> Generator[Path]:
    """A new folder with mode 0700, removed at the end. Raises HostError.

    It is locked while it is used, so that those of processes that were killed are known, and removed, too.
    """
    try:
        parent = Path(tempfile.gettempdir())
        if len(os.fsencode(parent)) > _LONGEST:
            parent = Path("/tmp")  # noqa: S108  (the folder in it has a name that nobody can guess)
        _sweep(parent)
        folder, lock = _make(parent)
    except OSError as error:
        raise HostError(f"no folder for sockets can be made: {error}", hint="Set TMPDIR") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        # Another process may take it for a stale one as long as it is not locked.
        with contextlib.suppress(FileNotFoundError):
            if (lock := _lock(folder)) is not None:
                if folder.exists():
                    return folder, lock
                os.close(lock)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.getuid() and (lock := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
