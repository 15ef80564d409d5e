"""Files of this machine in pieces, up and down: none is ever in memory as a whole unless it was already."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Final

from interpreter.errors import TransferError

PIECE: Final = 256 * 1024
"""Bytes that are moved at a time."""

Progress = Callable[[int, int | None], None]
"""Gets the bytes that have been moved and, where it is known, how many there are."""


async def read_file(path: Path, size: int | None) -> AsyncGenerator[bytes]:
    """The ``size`` bytes of a file, or all that there is. Raises OSError, TransferError when it comes short."""
    with path.open("rb", buffering=0) as file:
        if size is None:
            while piece := await asyncio.to_thread(file.read, PIECE):
                yield piece
            return
        left = size
        while left:
            piece = await asyncio.to_thread(file.read, min(left, PIECE))
            if not piece:
                raise TransferError(f"{path} came short by {left} of {size} bytes", hint="It changed while it was read")
            left -= len(piece)
            yield piece


async def cut(data: bytes) -> AsyncGenerator[bytes]:
    """Bytes in pieces."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        yield bytes(view[start : start + PIECE])


async def from_iterable(pieces: Iterable[bytes]) -> AsyncGenerator[bytes]:
    """Pieces that are made by blocking code."""
    iterator = iter(pieces)
    while (piece := await asyncio.to_thread(next, iterator, None)) is not None:
        yield piece


async def counted(pieces: AsyncIterable[bytes], total: int | None, progress: Progress | None) -> AsyncIterator[bytes]:
    """Pass pieces on, and tell how many bytes have been."""
    done = 0
    if progress:
        progress(0, total)
    async for piece in pieces:
        yield piece
        done += len(piece)
        if progress:
            progress(done, total)
