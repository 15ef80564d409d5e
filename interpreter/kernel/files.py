"""Files in and out of a session, in pieces: none of them is ever in memory as a whole."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from interpreter.errors import FileExists, GuestMisbehaved, GuestRefused, IsAFolder, MachineDied, TransferError
from interpreter.kernel.control import integer
from interpreter.kernel.framing import Connect, FrameStream, open_service
from interpreter.kernel.paths import check_path, refusal, sent_path
from interpreter.kernel.versions import PARTS, knows
from kernel_guest.frames import AGENT_VERSION, Kind

PIECE: Final = 256 * 1024
"""Bytes that are read at a time."""


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file in a session, while it is open. ``ctime_ns`` is None where an older agent does not tell it."""

    path: str
    size: int
    mode: int
    mtime_ns: int
    ctime_ns: int | None
    stream: FrameStream
    has_parts: bool
    """Whether any part of it can be read; else only the whole."""

    @property
    def pieces(self) -> AsyncIterable[bytes]:
        """All of it."""
        return self.part(0, self.size)

    async def part(self, start: int, count: int) -> AsyncGenerator[bytes]:
        """``count`` bytes from ``start`` on, once. Raises TransferError when it comes short, ConnectionError."""
        if self.has_parts:
            await self.stream.send(Kind.CALL, {"start": start, "count": count})
        left = count
        while left:
            piece = await self.stream.reader.read(min(left, PIECE))
            if not piece:
                raise TransferError(
                    f"{self.path} came short by {left} of {count} bytes", hint="It changed while it was read"
                )
            left -= len(piece)
            yield piece


async def put_file(
    connect: Connect,
    path: str,
    pieces: AsyncIterable[bytes],
    *,
    size: int | None = None,
    mode: int = 0o644,
    overwrite: bool = True,
    version: int = AGENT_VERSION,
) -> int:
    """Write ``pieces`` to ``path`` in the guest, whole or not at all; returns the size in bytes.

    ``size``, when known, must come out. Without ``overwrite`` what is there stays, and of many at once one wins.
    ``version`` is the agent's. Raises TransferError with what the guest said, MachineDied.
    """
    if check_path(path).endswith("/"):
        raise IsAFolder(f"{path} names a folder", hint="Leave the / at its end out, or make a folder")
    sent = sent_path(path, version)
    try:
        async with open_service(connect, "put", path=sent, size=size, mode=mode, overwrite=overwrite) as stream:
            # The guest may refuse at any moment, a full disk for one; then the rest need not be sent.
            answer = asyncio.create_task(stream.answer())
            try:
                # The guest ended the stream while more was sent: why, it has told.
                with contextlib.suppress(ConnectionError):
                    await _send(stream, pieces, answer, size)
                return integer(await answer, "size")
            finally:
                answer.cancel()
    except GuestRefused as error:
        told = refusal(f"{path} could not be written", error)
        if isinstance(told, FileExists):
            told.hint = "Choose another name, or overwrite it"
        raise told from error
    except OSError as error:
        raise MachineDied(f"the machine ended while {path} was written") from error


async def _send(
    stream: FrameStream, pieces: AsyncIterable[bytes], answer: asyncio.Task[dict[str, Any]], size: int | None
) -> None:
    async for piece in pieces:
        if answer.done():
            return
        # An empty piece would be the end.
        if not piece:
            continue
        if size is None:
            # Of unknown size: each piece with its length, so that an end is told from a break.
            stream.writer.write(len(piece).to_bytes(4, "big"))
        stream.writer.write(piece)
        await stream.writer.drain()
    if size is None:
        stream.writer.write(bytes(4))


@asynccontextmanager
async def get_file(connect: Connect, path: str, *, version: int = AGENT_VERSION) -> AsyncGenerator[GuestFile]:
    """Open ``path`` in the guest. Raises TransferError with what the guest said, or when it comes short."""
    check_path(path)
    sent = sent_path(path, version)
    try:
        async with open_service(connect, "get", path=sent) as stream:
            about = stream.opened
            size = integer(about, "size")
            if size < 0:
                raise GuestMisbehaved("the guest announced a file of less than nothing")
            yield GuestFile(
                path,
                size,
                integer(about, "mode") & 0o7777,
                integer(about, "mtime_ns"),
                integer(about, "ctime_ns") if "ctime_ns" in about else None,
                stream,
                knows(PARTS, version),
            )
    except GuestRefused as error:
        raise refusal(f"{path} could not be read", error) from error
    except ConnectionError as error:
        raise MachineDied(f"the machine ended while {path} was read") from error
