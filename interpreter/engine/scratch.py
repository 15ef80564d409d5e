"""A session's scratch disk: a sparse copy of the template's.

In a machine's folder it has a name from the start, by which another service finds it, and goes with the folder. Else
it has none, and is gone when the last process that holds it is, however that process ended.
"""

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from interpreter.errors import DiskFull, HostError
from interpreter.private import private_folder
from interpreter.vm.memory import copy_sparse

SCRATCH: Final = "scratch"


@asynccontextmanager
async def copy_scratch(source: int, folder: Path, *, named: bool = False) -> AsyncGenerator[int]:
    """A copy of the scratch disk ``source`` as an open descriptor, in ``folder``. Raises DiskFull, HostError."""
    try:
        file = _create(folder, named=named)
    except OSError as error:
        raise HostError(f"{folder} cannot hold scratch disks: {error.strerror}") from None
    with file:
        try:
            await asyncio.to_thread(copy_sparse, source, file.fileno())
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(
                    f"no room for a scratch disk in {folder}", hint="Free some, or move INTERPRETER_HOME"
                ) from None
            raise HostError(f"a scratch disk cannot be made in {folder}: {error.strerror}") from None
        yield file.fileno()


def _create(folder: Path, *, named: bool) -> FileIO | BinaryIO:
    if named:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return FileIO(folder / SCRATCH, "r+", opener=lambda path, _: os.open(path, flags, 0o600))
    private_folder(folder)
    return tempfile.TemporaryFile(dir=folder, buffering=0)
