"""Clients that hold connections without using them: each is left at its deadline, none keeps others away."""

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from pydantic import SecretStr
from unopened import unopened_app

from interpreter import ConfigurationError, Settings
from interpreter.api.http import connections, server
from interpreter.api.http.descriptors import RESERVE, room_for_connections
from interpreter.api.http.server import new_server

KEY = "0123456789abcdef"
SECONDS = 20.0
POST = f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n".encode()


@dataclass
class Served:
    port: int
    server: Any
    serving: asyncio.Task[None]

    async def connect(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        return reader, writer

    async def status(self) -> int:
        """What a new client is answered."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=SECONDS) as client:
            return (await client.get("/healthz", headers={"X-API-Key": KEY})).status_code


@asynccontextmanager
async def served(tmp_path: Path, limit: int = 100) -> AsyncGenerator[Served]:
    settings = Settings(home=tmp_path, api_key=SecretStr(KEY))
    async with unopened_app(settings) as app:
        serving_server = new_server(app, settings, limit)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(2048)
            serving = asyncio.create_task(serving_server.serve([listener]))
            try:
                yield Served(listener.getsockname()[1], serving_server, serving)
            finally:
                serving_server.should_exit = True
                await serving


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What came until the server closed the connection."""
    data = b""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionResetError):
            while piece := await reader.read(65_536):
                data += piece
    return data


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "REST_SECONDS"):
        monkeypatch.setattr(connections, name, 0.3)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b""),
        # A second head on a connection that was used well before.
        (POST.replace(b"POST /v1/sessions", b"GET /healthz") + b"\r\nGET /heal", b"200"),
        (POST + b"Content-Length: 9\r\n\r\n{", b""),
        # Refused before its body was there, which never comes.
        (b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{", b"401"),
    ],
)
async def test_who_never_ends_a_request_is_left(tmp_path: Path, sent: bytes, answered: bytes) -> None:
    async with served(tmp_path) as service:
        reader, writer = await service.connect(sent)
        head = await ended(reader)
        assert answered in head.split(b"\r\n")[0]
        assert bool(answered) == bool(head)
        writer.close()


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    "head", [b"GET / HTTP/1.1\r\n", b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n"]
)
async def test_one_byte_at_a_time_does_not_put_the_deadline_off(tmp_path: Path, head: bytes) -> None:
    async with served(tmp_path) as service:
        reader, writer = await service.connect(head)
        left = asyncio.create_task(ended(reader))
        while not left.done():
            with contextlib.suppress(ConnectionError):
                writer.write(b"x")
                await writer.drain()
            await asyncio.wait({left}, timeout=0.05)
        assert b" 200 " not in await left
        writer.close()


@pytest.mark.usefixtures("hurried")
async def test_a_slow_upload_and_a_long_answer_are_not_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_SECONDS", 2.0)
    async with served(tmp_path) as service:
        body = b'{"template": "none"}'
        reader, writer = await service.connect(POST + f"Content-Length: {len(body)}\r\n\r\n".encode())
        for byte in body:
            writer.write(bytes([byte]))
            # Longer in all than a head may take.
            await asyncio.sleep(0.05)
        assert b" 422 " in await asyncio.wait_for(reader.readline(), SECONDS)
        writer.close()


async def test_silent_connections_make_room_for_others(tmp_path: Path) -> None:
    async with served(tmp_path, limit=10) as service:
        silent = [await service.connect(b"GET /") for _ in range(30)]
        assert await service.status() == 200
        assert len(service.server.server_state.connections) <= 10
        # The oldest had to go.
        assert await ended(silent[0][0]) == b""
        for _, writer in silent:
            writer.close()


async def test_no_more_than_the_limit_are_served_at_once_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, limit=3) as service:
        # Begun and not ended: they are at work.
        with structlog.testing.capture_logs() as logs:
            head = POST + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
            busy = [await service.connect(head) for _ in range(3)]
            for reader, _ in busy:
                assert b" 100 " in await asyncio.wait_for(reader.readline(), SECONDS)
            waiting = asyncio.create_task(service.status())
            while not logs:  # noqa: ASYNC110  (what is logged is no event)
                await asyncio.sleep(0)
        assert not waiting.done()
        assert [log["event"] for log in logs] == ["all connections are in use"]
        busy[0][1].write(b"123456789")
        busy[0][1].close()
        assert await waiting == 200
        for _, writer in busy:
            writer.close()


def failing(error: int, times: int) -> Callable[..., Any]:
    real = asyncio.get_running_loop().sock_accept
    left = iter(range(times))

    async def accept(listener: socket.socket) -> Any:
        if next(left, None) is not None:
            raise OSError(error, "no")
        return await real(listener)

    return accept


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED])
async def test_an_error_while_accepting_is_told_once_and_overcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(server, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", failing(number, 20))
    with structlog.testing.capture_logs() as logs:
        async with served(tmp_path) as service:
            assert await service.status() == 200
    assert len(logs) == 1


async def test_the_last_descriptors_are_not_for_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_RETRY_SECONDS", 0.01)
    async with served(tmp_path) as service:
        assert await service.status() == 200
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            lowest = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + RESERVE, hard))
        try:
            reader, writer = await service.connect()
            assert await ended(reader) == b""
            writer.close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await service.status() == 200


async def test_the_end_of_accepting_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(listener: socket.socket) -> None:
        raise LookupError("broken")

    monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", broken)
    with pytest.raises(ExceptionGroup) as ended:
        async with served(tmp_path) as service:
            await service.serving
    assert ended.group_contains(LookupError, match="broken")


@pytest.mark.parametrize(("sessions", "limit", "room"), [(20, 1024, 576), (200, 65_536, 4096), (30, 1024, 416)])
def test_connections_get_what_sessions_leave(sessions: int, limit: int, room: int) -> None:
    assert room_for_connections(Settings(max_sessions=sessions), limit) == room


def test_sessions_that_do_not_fit_are_refused_with_the_number_that_does() -> None:
    with pytest.raises(ConfigurationError, match="INTERPRETER_MAX_SESSIONS to 52 or less"):
        room_for_connections(Settings(max_sessions=200), 1024)
    assert room_for_connections(Settings(max_sessions=52), 1024) >= 64


def test_machines_of_the_pool_take_theirs_beside_the_sessions() -> None:
    assert room_for_connections(Settings(max_sessions=20, pool={"base": 10, "python-data": 5}), 1024) == 576 - 15 * 8
