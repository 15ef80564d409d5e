"""Bytes that come piece by piece, saved to a file of this machine."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterable
from pathlib import Path


async def save(pieces: AsyncIterable[bytes], target: Path | int) -> None:
    """Write pieces to ``target``, whole or not at all: it has its name when all is there. Raises OSError.

    A link is written through. What is no file, as a pipe, and an open descriptor get the pieces as they come.
    """
    if isinstance(target, int):
        await _write(pieces, target)
        return
    if target.exists() and not target.is_file():
        with target.open("wb", buffering=0) as output:
            await _write(pieces, output.fileno())
        return
    # Not the link itself, which would be replaced by a file.
    target = Path(os.path.realpath(target))
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("xb", buffering=0) as output:
            await _write(pieces, output.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


async def _write(pieces: AsyncIterable[bytes], descriptor: int) -> None:
    async for piece in pieces:
        await asyncio.to_thread(_write_all, descriptor, memoryview(piece))


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
