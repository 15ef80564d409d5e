"""Guest memory as a memory file descriptor, and sparse copies of it.

A template's memory is loaded once per process into a memfd and sealed against writing. Every session maps it
privately, so all share the pages that none has written. The seal matters: QEMU 7.2 opens its memory file for
writing even for a private mapping (``rom=off,readonly=on`` came with 8.2), and a guest that broke out of one
QEMU could otherwise change the memory of all others.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_CHUNK = 4 * 1024 * 1024
_PAGE = 4096
_ZERO_PAGE = bytes(_PAGE)


def new_memory(size: int) -> int:
    """A memfd of ``size`` bytes of zeros, open for writing. The caller closes it."""
    memory = os.memfd_create("guest-memory", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(memory, size)
    return memory


def opened_again(descriptor: int) -> int:
    """The same file for reading, with an offset of its own, which a copy would share. The caller closes it."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def load_memory(source: int) -> int:
    """Copy the file ``source`` into a new memfd and seal it. Blocks: call it in a thread."""
    memory = new_memory(os.fstat(source).st_size)
    try:
        copy_sparse(source, memory)
        seal(memory)
    except BaseException:
        os.close(memory)
        raise
    return memory


def seal(memory: int) -> None:
    """Forbid every change of a memfd, to all who have it. May wait for seconds."""
    # EBUSY: the system still holds pages that were just written (it waits for them itself, for 0.15 s); nobody tells
    # when it has let go of them.
    for wait in (0.05, 0.2, 0.8, 3.2):
        try:
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            time.sleep(wait)
        else:
            return
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)


def save_memory(memory: int, target: int) -> None:
    """Write the memfd ``memory`` to the empty file ``target``, leaving out pages of zeros. Blocks."""
    os.ftruncate(target, os.fstat(memory).st_size)
    for start, end in extents(memory):
        for offset in range(start, end, _CHUNK):
            _write_nonzero(target, os.pread(memory, min(_CHUNK, end - offset), offset), offset)


def copy_sparse(source: int, target: int) -> None:
    """Copy what ``source`` holds to the same places of ``target`` and give it the same size. Blocks.

    Holes stay holes, so the cost is that of the data alone. A file system that can share blocks does.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    for start, end in extents(source):
        offset = start
        while offset < end:
            offset += _copy_range(source, target, offset, end - offset)


def extents(descriptor: int) -> Iterator[tuple[int, int]]:
    """The (start, end) byte ranges of a file that hold data."""
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _copy_range(source: int, target: int, offset: int, length: int) -> int:
    try:
        copied = os.copy_file_range(source, target, length, offset, offset)
    except OSError as error:
        # Not between these two file systems (memfd is one): copy through this process.
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        copied = os.pwrite(target, os.pread(source, min(_CHUNK, length), offset), offset)
    if copied == 0:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return copied


def _write_nonzero(target: int, data: bytes, offset: int) -> None:
    run_start: int | None = None
    for position in range(0, len(data) + _PAGE, _PAGE):
        page = data[position : position + _PAGE]
        if page and page != _ZERO_PAGE[: len(page)]:
            run_start = position if run_start is None else run_start
        elif run_start is not None:
            _write_all(target, memoryview(data)[run_start:position], offset + run_start)
            run_start = None


def _write_all(target: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(target, data, offset)
        data, offset = data[written:], offset + written
