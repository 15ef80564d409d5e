"""Answers that may be long: in pieces, sent as fast as the client takes them, never put together as a whole."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import structlog
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Send

from interpreter.errors import InterpreterError
from interpreter.sessions.outcome import Piece

log = structlog.get_logger(__name__)

PIECE: Final = 64 * 1024
"""Bytes that are sent at once; what a slow client makes wait is not much more."""


class BytesOfSession(StreamingResponse):
    """Bytes as they come out of a session, which may break off: the file has become shorter, the machine has ended."""

    async def stream_response(self, send: Send) -> None:
        """Called with what takes the answer."""
        try:
            await super().stream_response(send)
        except InterpreterError as error:
            # The head is sent. The server closes the connection: so the client learns that this is not all.
            log.warning("an answer broke off", code=error.code)


def long_answer(
    pieces: Callable[[], Iterable[Piece]],
    status_code: int = 200,
    *,
    held: AbstractContextManager[None] | None = None,
) -> Response:
    """JSON from ``pieces``, which gives them anew each time. ``held`` is entered while it is sent."""
    length = sum(map(len, pieces()))
    if length <= PIECE:
        return Response(b"".join(pieces()), status_code, media_type="application/json")
    headers = {"Content-Length": str(length)}
    return StreamingResponse(_sent(pieces, held or nullcontext()), status_code, headers, "application/json")


async def _sent(pieces: Callable[[], Iterable[Piece]], held: AbstractContextManager[None]) -> AsyncGenerator[bytes]:
    with held:
        for piece in in_pieces(pieces()):
            yield piece
            # A fast client would never let anybody else have a turn.
            await asyncio.sleep(0)


def in_pieces(parts: Iterable[Piece]) -> Iterator[bytes]:
    """The same bytes in pieces of about PIECE."""
    small: list[Piece] = []
    size = 0
    for part in parts:
        if len(part) >= PIECE:
            if small:
                yield b"".join(small)
                small, size = [], 0
            view = memoryview(part)
            for start in range(0, len(view), PIECE):
                yield bytes(view[start : start + PIECE])
            continue
        small.append(part)
        size += len(part)
        if size >= PIECE:
            yield b"".join(small)
            small, size = [], 0
    if small:
        yield b"".join(small)
