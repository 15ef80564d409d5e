"""Server-sent events (WHATWG HTML, section 9.2), and noticing that a client went away."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from interpreter.api.answers import in_pieces
from interpreter.sessions.journal import Journal, JournalEntry

MEDIA_TYPE: Final = "text/event-stream"
_KEEP_ALIVE_SECONDS: Final = 15.0

T = TypeVar("T")


class EventStream(StreamingResponse):
    """Events as they come. ``at_end`` runs when they have all been sent, or nobody reads them any more."""

    # No media type of the class: FastAPI would describe the errors of its routes by it too.

    def __init__(
        self,
        events: AsyncIterator[str | bytes],
        status_code: int = 200,
        *,
        at_end: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        # Proxies must pass each event on at once.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, status_code, headers, MEDIA_TYPE)
        self._at_end = at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        # Here and not in the generator, which is never begun when the client is gone already.
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._at_end is not None:
                await asyncio.shield(self._at_end())


def wants_events(request: Request) -> bool:
    """Whether the client asked for server-sent events."""
    return MEDIA_TYPE in request.headers.get("accept", "")


async def journal_events(journal: Journal, start: int = 0) -> AsyncGenerator[str | bytes]:
    """A journal's events from number ``start`` on, with a comment now and then so that a dead connection shows."""
    events = journal.follow(start)
    upcoming = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({upcoming}, timeout=_KEEP_ALIVE_SECONDS)
            if not done:
                yield ": keep-alive\n\n"
                continue
            try:
                number, event = upcoming.result()
            except StopAsyncIteration:
                return
            for piece in format_event(event, number):
                yield piece
            upcoming = asyncio.ensure_future(anext(events))
    finally:
        upcoming.cancel()
        with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
            await upcoming
        await events.aclose()


def format_event(event: JournalEntry, number: int) -> Iterator[bytes]:
    """One event on the wire, in pieces: a reader that is slow has not all of a long one waiting for it."""
    return in_pieces([f"id: {number}\nevent: {event.type}\ndata: ".encode(), event.json, b"\n\n"])


def last_event(request: Request) -> int:
    """The number of the event after the last that a client says it has seen (``Last-Event-ID``)."""
    seen = request.headers.get("last-event-id", "")
    return int(seen) + 1 if seen.isdecimal() else 0


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """Wait for ``work``; None when the client goes away before. The request's body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    message: dict[str, Any] = {}
    while message.get("type") != "http.disconnect":
        message = dict(await request.receive())
