"""How much a request may bring. What is too long is refused before, or while, it is read; JSON before it is parsed.

A body that comes packed is unpacked here, so that its bounds are those of what comes out.
"""

import re
from contextlib import AsyncExitStack
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interpreter.api.http.unpacking import CODINGS, UnknownCoding, coding_of, unpacked
from interpreter.api.problems import answer, refusal_of, refusal_of_http
from interpreter.api.service import Service
from interpreter.deadline import deadline
from interpreter.errors import Busy, TooLarge
from interpreter.kernel.limits import checking
from interpreter.kernel.memory import Room
from interpreter.settings import Settings
from interpreter.turns import in_turns

_JSON_LIMIT: Final = 16 * 1024 * 1024
_MULTIPART_OVERHEAD: Final = 1024 * 1024
_NOTEBOOKS: Final = "/v1/notebooks/execute"
_FILES: Final = ("/files/upload", "/files/content")
"""Passed on as they come, and never whole."""
_SESSION: Final = re.compile("/v1/sessions/([^/]+)/")
_OTHERS: Final = 4 * _JSON_LIMIT
"""What all bodies may take that are for no session."""
_PATIENCE_SECONDS: Final = 10.0


class BodyLimitMiddleware:
    """Bounds the bodies of requests: files and notebooks by the setting; all else is JSON, by 16 MiB and its values."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._upload_limit = settings.upload_limit
        self._others = Room(_OTHERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        limit = self._limit_of(path)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await self._refuse(limit)(scope, receive, send)
            return
        try:
            if (coding := coding_of(headers)) is not None:
                scope, receive = unpacked(scope, receive, coding)
        except UnknownCoding as error:
            await _unknown(str(error))(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Not one of our own errors: FastAPI would make a 400 of it while it reads a JSON body.
                raise HTTPException(413, _message(limit))
            return message

        if path.endswith(_FILES):
            await self._app(scope, counted, send)
            return
        # Of one that does not say how long it is, or will be, the longest is expected.
        size = int(length) if coding is None and "transfer-encoding" not in headers else limit
        room = self._room_of(scope)
        async with AsyncExitStack() as held:
            try:
                async with deadline(_PATIENCE_SECONDS):
                    await held.enter_async_context(room.holding(size))
            except TimeoutError:
                busy = Busy("requests under way take all the memory that they may", retry_after=1)
                await refusal_of(busy)(scope, receive, send)
                return
            if path == _NOTEBOOKS:
                await self._app(scope, _until_taken(counted, held), send)
                return
            try:
                body = await _whole(counted)
                await in_turns(checking(body, "the body"))
            except (HTTPException, TooLarge) as error:
                refusal = refusal_of_http(error) if isinstance(error, HTTPException) else refusal_of(error)
                await refusal(scope, receive, send)
                return
            except ClientDisconnect:
                return
            again = _until_taken(_again(body, receive), held)
            del body
            await self._app(scope, again, send)

    def _room_of(self, scope: Scope) -> Room:
        """Where a body is counted: with its session, when it is for one that runs; else with all others."""
        live = None
        if found := _SESSION.match(scope["path"]):
            service: Service = scope["app"].state.service
            live = service.sessions.live_session(found[1])
        return self._others if live is None else live.session.memory.sent

    def _limit_of(self, path: str) -> int:
        if path.endswith("/files/upload"):
            return self._upload_limit + _MULTIPART_OVERHEAD
        return self._upload_limit if path.endswith("/files/content") or path == _NOTEBOOKS else _JSON_LIMIT

    def _refuse(self, limit: int) -> ASGIApp:
        return answer(413, "too_large", _message(limit), hint="Send it in parts")


async def _whole(receive: Receive) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what comes after it."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again


def _until_taken(receive: Receive, held: AsyncExitStack) -> Receive:
    """The same; what is ``held`` for a body is let go of when whoever has taken all of it asks what comes after."""
    taken = False

    async def taking() -> Message:
        nonlocal taken
        if taken:
            await held.aclose()
        message = await receive()
        taken = not message.get("more_body", False)
        return message

    return taking


def _unknown(coding: str) -> ASGIApp:
    message = f"a body with Content-Encoding {coding!r} is not unpacked here, and so not taken"
    hint = f"Send it as it is, or as one of {CODINGS}; a file that is to stay packed goes without the header"
    return answer(415, "unsupported_media_type", message, hint, {"Accept-Encoding": CODINGS})


def _message(limit: int) -> str:
    return f"the body is longer than {limit} bytes, the most that one request may bring"
