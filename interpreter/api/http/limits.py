"""How much a request may bring. What is too long is refused before, or while, it is read; JSON before it is parsed.

A body that comes packed is unpacked here, so that its bounds are those of what comes out.
"""

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interpreter.api.http.unpacking import CODINGS, UnknownCoding, coding_of, unpacked
from interpreter.api.problems import answer, refusal_of, refusal_of_http
from interpreter.errors import TooLarge
from interpreter.kernel.limits import checking
from interpreter.kernel.turns import in_turns
from interpreter.settings import Settings

_JSON_LIMIT: Final = 16 * 1024 * 1024
_MULTIPART_OVERHEAD: Final = 1024 * 1024
_NOTEBOOKS: Final = "/v1/notebooks/execute"


class BodyLimitMiddleware:
    """Bounds the bodies of requests: files and notebooks by the setting; all else is JSON, by 16 MiB and its values."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._upload_limit = settings.upload_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_of(scope["path"])
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            await self._refuse(limit)(scope, receive, send)
            return
        try:
            if (coding := coding_of(Headers(scope=scope))) is not None:
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

        if limit != _JSON_LIMIT:
            await self._app(scope, counted, send)
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
        again = _again(body, receive)
        del body
        await self._app(scope, again, send)

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


def _unknown(coding: str) -> ASGIApp:
    message = f"a body with Content-Encoding {coding!r} is not unpacked here, and so not taken"
    hint = f"Send it as it is, or as one of {CODINGS}; a file that is to stay packed goes without the header"
    return answer(415, "unsupported_media_type", message, hint, {"Accept-Encoding": CODINGS})


def _message(limit: int) -> str:
    return f"the body is longer than {limit} bytes, the most that one request may bring"
