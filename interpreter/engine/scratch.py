"""A session's scratch disk: a sparse copy of the template's, in a file without a name.

A file without a name is gone when the last process that holds it is, however that process ended.
"""

import asyncio
import errno
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from interpreter.errors import DiskFull, HostError
from interpreter.vm.memory import copy_sparse


@asynccontextmanager
async def copy_scratch(source: int, folder: Path) -> AsyncGenerator[int]:
    """A copy of the scratch disk ``source`` as an open descriptor, in ``folder``. Raises DiskFull, HostError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  (closed below)
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
