"""Who calls: the one place where a request gets its tenant. Every route is behind it."""

import hmac
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from fastapi import Depends
from fastapi.requests import HTTPConnection
from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from interpreter.api.problems import answer, is_jupyters
from interpreter.loopback import is_loopback
from interpreter.settings import Settings

DEFAULT_TENANT: Final = "default"
_SCHEMES: Final = frozenset({"bearer", "token"})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    tenant: str


class CallerMiddleware:
    """Lets a request pass when its caller is known, and notes who that is.

    With a key set, the key says so, as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``; Jupyter's clients may also
    say ``Authorization: token KEY`` or ``?token=KEY``, the latter on their own routes only. Without one everybody on
    this machine may call, and nobody else, whatever they write in their headers. What a web page makes a browser send
    is kept out then: a host name that is not this machine's (DNS rebinding), an origin that is not the service's own.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key = settings.key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._key is not None:
            if not hmac.compare_digest(_given_key(scope, headers).encode(), self._key.encode()):
                refusal = answer(
                    *(401, "unauthorised", "this service wants a key"),
                    hint="Send it as `Authorization: Bearer KEY`",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
        elif not (_is_from_here(scope) and _means_here(headers)):
            message = "without a key only this machine's own programs may call, not web pages"
            refusal = answer(403, "forbidden", message, hint="Set INTERPRETER_API_KEY")
            await refusal(scope, receive, send)
            return
        state: dict[str, Any] = scope.setdefault("state", {})
        state["caller"] = Caller(DEFAULT_TENANT)
        await self._app(scope, receive, send)


def _is_from_here(scope: Scope) -> bool:
    # The address of the connection itself. Who has none is not known to be of this machine.
    client = scope.get("client")
    return client is not None and is_loopback(client[0])


def _means_here(headers: Headers) -> bool:
    host = headers.get("host", "")
    if not is_loopback(_name(host)):
        return False
    origin = headers.get("origin")
    # No page's origin has a user's name, a path or a query.
    return origin is None or origin.partition("://")[2] == host


def _given_key(scope: Scope, headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() in _SCHEMES and token.strip():
        return token.strip()
    if given := headers.get("x-api-key"):
        return given
    if is_jupyters(scope["path"]):
        return QueryParams(scope["query_string"]).get("token", "")
    return ""


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


# Not `def`: FastAPI would run it in a thread, for each request.
async def _caller(connection: HTTPConnection) -> Caller:
    caller: Caller = connection.state.caller
    return caller


CallerOf = Annotated[Caller, Depends(_caller)]
"""Type of a route's argument that is the request's caller."""
