"""How much a request may bring. A body that is too long is refused before, or while, it is read."""

from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interpreter.api.problems import answer
from interpreter.settings import Settings

_JSON_LIMIT: Final = 16 * 1024 * 1024
_MULTIPART_OVERHEAD: Final = 1024 * 1024
_NOTEBOOKS: Final = "/v1/notebooks/execute"


class BodyLimitMiddleware:
    """Bounds the bodies of requests: files and notebooks by the setting, all else by 16 MiB."""

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
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Not one of our own errors: FastAPI would make a 400 of it while it reads a JSON body.
                raise HTTPException(413, _message(limit))
            return message

        await self._app(scope, counted, send)

    def _limit_of(self, path: str) -> int:
        if path.endswith("/files/upload"):
            return self._upload_limit + _MULTIPART_OVERHEAD
        return self._upload_limit if "/files/" in path or path == _NOTEBOOKS else _JSON_LIMIT

    def _refuse(self, limit: int) -> ASGIApp:
        return answer(413, "too_large", _message(limit), hint="Send it in parts")


def _message(limit: int) -> str:
    return f"the body is longer than {limit} bytes, the most that one request may bring"
