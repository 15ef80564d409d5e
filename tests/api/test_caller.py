"""Who may call: with a key whoever sends it, without one this machine's own programs, on every route there is."""

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.routing import BaseRoute, WebSocketRoute
from unopened import unopened_app

from interpreter import Settings

KEY = "0123456789abcdef"
HERE = ("127.0.0.1", 40000)
ELSEWHERE = ("192.0.2.2", 40000)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "MADE-UP")
HTTP_ROUTES = {"/v1/sessions", "/v1/sessions/{session_id}/execute", "/api/kernels", "/mcp", "/openapi.json", "/docs"}
WEBSOCKETS = {"/api/kernels/{kernel_id}/channels", "/v1/sessions/{session_id}/contexts/{context_id}/changes"}

WRONG: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": "Bearer "},
    {"Authorization": f"Basic {KEY}"},
    {"X-API-Key": ""},
    {"X-Forwarded-For": "127.0.0.1"},
]
PAGES: list[dict[str, str]] = [
    {"Host": "evil.example"},
    {"Host": "127.0.0.1.evil.example:8888"},
    {"Host": "[::1"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:9999"},
]


@asynccontextmanager
async def guarded(tmp_path: Path, key: str | None, client: tuple[str, int] | None) -> AsyncGenerator[httpx.AsyncClient]:
    settings = Settings(home=tmp_path, api_key=None if key is None else SecretStr(key))
    async with unopened_app(settings) as app:
        transport = httpx.ASGITransport(app, client=client)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8888") as http:
            http.app = app  # type: ignore[attr-defined]
            yield http


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    for route in routes:
        inner = getattr(route, "original_router", None) or route
        if hasattr(inner, "routes"):
            yield from routes_of(inner.routes)
        else:
            yield route


def paths(app: FastAPI) -> tuple[list[str], list[str]]:
    """Paths of all HTTP routes, and of all WebSockets, of the application."""
    found = list(routes_of(app.routes))
    sockets = [route.path for route in found if isinstance(route, WebSocketRoute)]
    others = [path for route in found if (path := getattr(route, "path", None)) and path not in sockets]
    assert set(others) >= HTTP_ROUTES
    assert set(sockets) >= WEBSOCKETS
    assert set(others) >= set(app.openapi()["paths"])
    return [*others, "/", "/nothing/here"], sockets


async def websocket_status(app: FastAPI, path: str, client: tuple[str, int] | None, **headers: str) -> int | str:
    """What an opening handshake is answered with: a status, or "accepted"."""
    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "subprotocols": [],
        "client": client,
        "server": ("127.0.0.1", 8888),
        "extensions": {"websocket.http.response": {}},
    }
    sent: list[Any] = []
    received = iter([{"type": "websocket.connect"}])

    async def receive() -> Any:
        return next(received, {"type": "websocket.disconnect", "code": 1001})

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    first = sent[0]
    return "accepted" if first["type"] == "websocket.accept" else first.get("status", first["type"])


async def test_a_key_guards_every_route_and_method(tmp_path: Path) -> None:
    async with guarded(tmp_path, KEY, HERE) as http:
        over_http, sockets = paths(http.app)  # type: ignore[attr-defined]
        for number, headers in enumerate(WRONG):
            for path in over_http:
                for method in METHODS if number == 0 else ("GET",):
                    answer = await http.request(method, path, headers=headers)
                    assert answer.status_code == 401, f"{method} {path} {headers}"
            for path in sockets:
                status = await websocket_status(http.app, path, HERE, Host="127.0.0.1:8888", **headers)  # type: ignore[attr-defined]
                assert status == 401, f"{path} {headers}"


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
async def test_who_has_the_key_may_call_from_anywhere(tmp_path: Path, headers: dict[str, str]) -> None:
    async with guarded(tmp_path, KEY, ELSEWHERE) as http:
        assert (await http.get("/v1/sessions", headers=headers)).status_code == 200
        path = "/api/kernels/none/channels"
        assert await websocket_status(http.app, path, ELSEWHERE, **headers) == 404  # type: ignore[attr-defined]


@pytest.mark.parametrize("client", [ELSEWHERE, ("::ffff:192.0.2.2", 1), ("", 0), None])
async def test_without_a_key_no_header_makes_a_caller_local(tmp_path: Path, client: tuple[str, int] | None) -> None:
    lies = {"Host": "127.0.0.1:8888", "X-Forwarded-For": "127.0.0.1", "X-Real-IP": "::1", "Forwarded": "for=127.0.0.1"}
    async with guarded(tmp_path, None, client) as http:
        over_http, sockets = paths(http.app)  # type: ignore[attr-defined]
        for path in over_http if client == ELSEWHERE else ["/v1/sessions", "/healthz"]:
            for method in METHODS if client == ELSEWHERE else ("GET", "POST"):
                answer = await http.request(method, path, headers=lies)
                assert answer.status_code == 403, f"{method} {path}"
        for path in sockets:
            assert await websocket_status(http.app, path, client, **lies) == 403, path  # type: ignore[attr-defined]


@pytest.mark.parametrize("client", [HERE, ("127.1.2.3", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
async def test_without_a_key_this_machine_may_call(tmp_path: Path, client: tuple[str, int]) -> None:
    async with guarded(tmp_path, None, client) as http:
        for host in ("127.0.0.1:8888", "localhost", "[::1]:8888"):
            assert (await http.get("/v1/sessions", headers={"Host": host})).status_code == 200
            path = "/api/kernels/none/channels"
            assert await websocket_status(http.app, path, client, Host=host) == 404  # type: ignore[attr-defined]


async def test_without_a_key_no_web_page_may_call(tmp_path: Path) -> None:
    async with guarded(tmp_path, None, HERE) as http:
        for headers in PAGES:
            assert (await http.get("/v1/sessions", headers=headers)).status_code == 403, headers
            given = {"Host": "127.0.0.1:8888", **headers}
            path = "/api/kernels/none/channels"
            assert await websocket_status(http.app, path, HERE, **given) == 403, headers  # type: ignore[attr-defined]
