"""What is tried again and what is not, and which exception an error becomes. Against a transport of the test's own."""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from interpreter.client import AsyncClient, AsyncSession
from interpreter.client.transport import Call, Transport
from interpreter.errors import (
    BadPath,
    Busy,
    CommandNotStarted,
    ConfigurationError,
    ExecutionTimeout,
    GuestRefused,
    HostFull,
    InterpreterError,
    InvalidRequest,
    NotFound,
    ServiceError,
    ServiceUnreachable,
    TenantLimit,
    Unauthorised,
)

Outcome = httpx.Response | Exception
GET, POST = Call("GET", "/x"), Call("POST", "/x", body={"a": 1})


class Answer(BaseModel):
    well: bool


class Server:
    """Gives outcomes one after the other, and a clock that only sleeping moves."""

    def __init__(self, *outcomes: Outcome | Callable[[], Outcome], timeout: float = 60.0) -> None:
        self._outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []
        self.bodies: list[bytes] = []
        self.slept: list[float] = []
        self._now = 0.0
        self.transport = Transport(
            *("http://service:8888", "secret"),
            timeout=timeout,
            transport=httpx.MockTransport(self._handle),
            sleep=self._sleep,
            clock=lambda: self._now,
            jitter=lambda: 0.5,
        )

    async def get(self, call: Call = GET) -> Answer:
        return await self.transport.get(call, Answer)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._now += seconds

    async def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, httpx.ConnectError):
            raise outcome
        self.bodies.append(await request.aread())
        if isinstance(outcome, Exception):
            raise outcome
        assert isinstance(outcome, httpx.Response)
        return outcome


def well() -> httpx.Response:
    return httpx.Response(200, json={"well": True})


def wrong(status: int, code: str = "busy", **headers: str) -> httpx.Response:
    problem = {"error": {"code": code, "message": "no room", "hint": "wait"}}
    return httpx.Response(
        status, json=problem, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def events_of(*data: str) -> httpx.Response:
    return httpx.Response(200, content="".join(f"data: {one}\n\n" for one in data))


@pytest.mark.parametrize(
    "outcome",
    [
        *(httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.ReadError("reset")),
        httpx.RemoteProtocolError("no answer"),
        *(wrong(502), wrong(503), wrong(504)),
    ],
)
async def test_reading_is_tried_again(outcome: Outcome) -> None:
    server = Server(outcome, well())
    assert (await server.get()).well
    assert server.slept == [0.25]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 429, 500, 507])
async def test_reading_is_not_tried_again_when_that_would_not_help(status: int) -> None:
    server = Server(wrong(status))
    with pytest.raises(InterpreterError):
        await server.get()
    assert len(server.requests) == 1


async def test_reading_that_took_too_long_is_not_tried_again() -> None:
    server = Server(httpx.ReadTimeout("slow"))
    with pytest.raises(ServiceUnreachable, match="did not answer in time"):
        await server.get()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "outcome", [httpx.ReadError("reset"), httpx.RemoteProtocolError("gone"), wrong(502), wrong(503), wrong(504)]
)
async def test_what_may_have_been_done_is_not_done_again(method: str, outcome: Outcome) -> None:
    server = Server(outcome)
    with pytest.raises(InterpreterError):
        await server.get(Call(method, "/x", body={}))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "outcome", [httpx.ConnectError("refused"), wrong(429, Retry_After="2"), wrong(503, Retry_After="2")]
)
async def test_what_was_not_begun_is_tried_again_with_its_whole_body(outcome: Outcome) -> None:
    server = Server(outcome, well())
    assert (await server.get(POST)).well
    assert len(server.requests) == 2
    assert set(server.bodies) == {b'{"a": 1}'}


async def test_three_tries_are_the_most() -> None:
    server = Server(*(wrong(503) for _ in range(4)))
    with pytest.raises(Busy):
        await server.get()
    assert len(server.requests) == 3
    assert server.slept == [0.25, 0.5]


async def test_retry_after_is_obeyed() -> None:
    server = Server(wrong(429, Retry_After="7"), wrong(503, Retry_After="3"), well())
    await server.get(POST)
    assert server.slept == [7.25, 3.5]


async def test_retry_after_may_be_a_date() -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    server = Server(wrong(503, Retry_After=when), well())
    await server.get(POST)
    assert 18 < server.slept[0] < 21


@pytest.mark.parametrize("value", ["soon", "-3", "²", ""])
async def test_retry_after_that_is_nonsense_counts_as_none(value: str) -> None:
    response = httpx.Response(503, json={}, headers=httpx.Headers([(b"retry-after", value.encode())]))
    server = Server(response)
    with pytest.raises(ServiceError):
        await server.get(POST)
    assert server.slept == []


async def test_nobody_waits_past_the_timeout() -> None:
    server = Server(wrong(429, "tenant_limit", Retry_After="11"), timeout=10)
    with pytest.raises(TenantLimit) as raised:
        await server.get(POST)
    assert (server.slept, raised.value.retry_after) == ([], 11)


async def test_an_upload_from_an_iterator_is_never_tried_again() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"

    server = Server(wrong(503, "host_full", Retry_After="1"))
    with pytest.raises(HostFull):
        await AsyncSession(server.transport, "s").upload(pieces(), "x")
    assert server.bodies == [b"a"]
    assert "content-length" not in server.requests[0].headers


async def test_an_upload_of_bytes_is_made_anew() -> None:
    server = Server(wrong(503, Retry_After="1"), httpx.Response(201, json={"path": "x", "size": 300_000}))
    told: list[tuple[int, int | None]] = []
    size = await AsyncSession(server.transport, "s").upload(bytes(300_000), "x", progress=lambda *at: told.append(at))
    assert size == 300_000
    assert [len(body) for body in server.bodies] == [300_000, 300_000]
    assert server.requests[1].headers["content-length"] == "300000"
    assert told == [(0, 300_000), (262_144, 300_000), (300_000, 300_000)] * 2


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        *(("not_found", NotFound), ("bad_path", BadPath), ("busy", Busy), ("execution_timeout", ExecutionTimeout)),
        *(("guest_refused", GuestRefused), ("command_not_started", CommandNotStarted), ("unauthorised", Unauthorised)),
        *(("forbidden", ServiceError), ("internal", ServiceError), ("from_the_future", ServiceError)),
    ],
)
async def test_codes_become_exceptions(code: str, kind: type[InterpreterError]) -> None:
    with pytest.raises(InterpreterError, match="no room") as raised:
        await Server(wrong(418, code)).get()
    assert type(raised.value) is kind
    assert raised.value.hint == "wait"


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(401, text="<h1>Who?</h1>"), Unauthorised),
        (httpx.Response(429, headers={"Retry-After": "90"}), Busy),
        (httpx.Response(500, json=["x"]), ServiceError),
        (httpx.Response(400, json={"error": "x"}), ServiceError),
        (httpx.Response(307, headers={"Location": "/y"}), ServiceError),
        (httpx.Response(599, content=b"\xff"), ServiceError),
    ],
)
async def test_answers_of_something_else_become_exceptions(response: httpx.Response, kind: type[ServiceError]) -> None:
    with pytest.raises(ServiceError, match="not the service's") as raised:
        await Server(response).get()
    assert type(raised.value) is kind


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"well": "perhaps so"}', b"[]"])
async def test_an_answer_that_is_another_is_told(body: bytes) -> None:
    with pytest.raises(ServiceError, match="cannot be understood"):
        await Server(httpx.Response(200, content=body)).get()


async def test_the_key_goes_with_each_request() -> None:
    server = Server(well())
    await server.get()
    assert server.requests[0].headers["authorization"] == "Bearer secret"


async def test_nothing_at_the_address() -> None:
    async with AsyncClient("http://127.0.0.1:9", timeout=0.1) as client:
        with pytest.raises(ServiceUnreachable, match="no service answers at http://127.0.0.1:9"):
            await client.templates()


@pytest.mark.parametrize("url", ["127.0.0.1:8888", "ftp://x", "http://", "http://x:port"])
def test_an_address_that_cannot_be_one(url: str) -> None:
    with pytest.raises(ConfigurationError):
        AsyncClient(url)


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPRETER_URL", "http://elsewhere:1/under")
    assert str(Transport(None, None, timeout=1).url) == "http://elsewhere:1/under"
    assert str(Transport("http://here", None, timeout=1).url) == "http://here"


async def test_names_in_paths_are_quoted_or_refused() -> None:
    server = Server(httpx.Response(204))
    await AsyncSession(server.transport, "a/b?c").close_context("ü/#")
    assert server.requests[0].url.raw_path == b"/v1/sessions/a%2Fb%3Fc/contexts/%C3%BC%2F%23"
    for name in ("", "..", "\ud800"):
        with pytest.raises(InvalidRequest):
            AsyncSession(server.transport, name)
    with pytest.raises(InvalidRequest):
        await AsyncSession(server.transport, "a").describe("\ud800")


async def test_a_name_that_is_not_utf8_goes_as_its_bytes() -> None:
    entry = {"name": "caf\\xe9", "encoded": "caf%E9", "type": "file", "size": 1, "mode": "644"}
    entry["modified_at"] = "2026-01-01T00:00:00Z"
    server = Server(httpx.Response(200, json=entry), httpx.Response(200, json=entry))
    session = AsyncSession(server.transport, "a")
    described = await session.describe("ü &\udce9")
    assert described.exact_name == "caf\udce9"
    assert server.requests[0].url.raw_path == b"/v1/sessions/a/files/entry?path=%C3%BC%20%26%E9"
    await session.move(described.exact_name, "café")
    assert json.loads(server.requests[1].content) == {
        "source": {"encoded": "caf%E9"},
        "target": "café",
        "overwrite": False,
    }


async def test_events_make_a_result() -> None:
    done = '{"type": "done", "status": "ok", "execution_count": 3, "context_id": "main"}'
    outputs = [
        *('{"type": "started"}', '{"type": "stream", "name": "stdout", "text": "a"}'),
        *('{"type": "stream", "name": "stdout", "text": "b"}', '{"type": "stream", "name": "stderr", "text": "c"}'),
        *('{"type": "execute_result", "data": {"text/plain": "4"}}', '{"type": "new_in_the_future"}'),
    ]
    server = Server(events_of(*outputs, done, '{"type": "after"}'))
    result = await AsyncSession(server.transport, "s").execute("x")
    assert (result.status, result.stdout, result.stderr, result.text) == ("ok", "ab", "c", "4")
    assert [output["type"] for output in result.outputs] == ["stream", "stream", "execute_result"]


@pytest.mark.parametrize("data", [["{"], ["[]"], ["{}"], ['{"type": 1}'], ['{"type": "started"}'], []])
async def test_a_stream_that_breaks_off_or_is_nonsense_is_an_error(data: list[str]) -> None:
    with pytest.raises(ServiceError):
        await AsyncSession(Server(events_of(*data)).transport, "s").execute("x")


async def test_what_on_input_raises_ends_the_stream() -> None:
    def refuse(prompt: str, password: bool) -> str:
        raise LookupError(prompt)

    server = Server(events_of('{"type": "input_request", "prompt": "name?", "password": false}'))
    with pytest.raises(LookupError, match=r"name\?"):
        async for _ in AsyncSession(server.transport, "s").stream("x", on_input=refuse):
            pass


async def test_lists_go_from_page_to_page() -> None:
    def page(first: int, cursor: str | None) -> httpx.Response:
        about: dict[str, Any] = {"template": "t", "state": "running", "created_at": "2026-11-21T08:00:00Z"}
        about |= {"timeout_seconds": 1, "timeout_mode": "total", "network_mode": "SANDBOX", "cpus": 1, "memory_mb": 1}
        return httpx.Response(
            200, json={"sessions": [{"id": f"{first}", **about}, {"id": f"{first + 1}", **about}], "next": cursor}
        )

    pages = [page(1, "a"), page(3, "b"), page(5, None)]
    async with AsyncClient("http://x", transport=httpx.MockTransport(lambda _: pages.pop(0))) as client:
        assert [info.id async for info in client.list_sessions()] == ["1", "2", "3", "4", "5", "6"]
        pages = [page(1, "a"), page(3, "b")]
        assert [info.id async for info in client.list_sessions(limit=3)] == ["1", "2", "3"]
        assert [info.id async for info in client.list_sessions(limit=0)] == []
