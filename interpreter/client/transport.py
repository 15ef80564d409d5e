"""The one place that makes requests: address, key, retries, errors."""

import asyncio
import contextlib
import json
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from interpreter.client.failures import error_from_answer
from interpreter.client.models import Event
from interpreter.client.names import query_of
from interpreter.client.stream import EventParser
from interpreter.errors import ConfigurationError, InvalidRequest, ServiceError, ServiceUnreachable
from interpreter.loopback import is_loopback

DEFAULT_URL: Final = "http://127.0.0.1:8888"
MAX_TRIES: Final = 3
LONG_SECONDS: Final = 300.0
"""What the service may take for what goes through many files, or needs a snapshot made anew."""
_FIRST_PAUSE: Final = 0.25
"""Seconds, about, before the second try when the service does not say how long; twice that before the third."""
_QUIET_SECONDS: Final = 60.0
"""Seconds that a stream of events may be silent at least: the service sends a comment every 15."""
_KEPT_SECONDS: Final = 3.0
"""Seconds that an idle connection is kept: less than servers do, so that no request meets one that is being closed."""
_EVENTS: Final = {"Accept": "text/event-stream"}

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """A request. ``content`` makes its body anew for each try; ``once`` when it can do so only once.

    ``seconds`` is what the service may take besides the client's own timeout.
    """

    method: str
    path: str
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict[str, str | int | float | None])
    body: Mapping[str, Any] | None = None
    content: Callable[[], AsyncIterable[bytes]] | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    once: bool = False
    seconds: float = 0.0


def session_path(session_id: str, *parts: str) -> str:
    """The path of something of a session. Raises InvalidRequest for a part that cannot be one."""
    for part in (session_id, *parts):
        if part in {"", ".", ".."}:
            raise InvalidRequest(f"{part!r} is not the name of anything")
    try:
        return "/v1/sessions/" + "/".join(quote(part, safe="") for part in (session_id, *parts))
    except UnicodeEncodeError:
        raise InvalidRequest("a name cannot be sent: it is no text") from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that ``Retry-After`` asks for, given as a number or as a date; None when it does not."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def pause_before_retry(
    call: Call, outcome: httpx.Response | httpx.TransportError, tries: int, jitter: float
) -> float | None:
    """Seconds to wait before the next try; None when there must be none. ``jitter`` is between 0 and 1.

    What only reads is tried again whenever that may help. All else only when the service has not begun it: no
    connection was made, or it said itself when to come again.
    """
    if tries >= MAX_TRIES or call.once:
        return None
    reads = call.method == "GET"
    pause = _FIRST_PAUSE * 2 ** (tries - 1) * (0.5 + jitter)
    if isinstance(outcome, httpx.Response):
        asked = retry_after(outcome.headers) if outcome.status_code in {429, 503} else None
        if asked is not None:
            # Never before that time, and not all at once just after it.
            return asked + pause
        return pause if reads and outcome.status_code in {502, 503, 504} else None
    if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return pause
    return pause if reads and isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError) else None


class Transport:
    """Makes requests to one service. ``timeout`` is in seconds, for a request with its retries.

    ``sleep``, ``clock`` (seconds) and ``jitter`` (between 0 and 1) are replaced by tests. Raises ConfigurationError.
    """

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        *,
        timeout: float,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = _checked_url(url or os.environ.get("INTERPRETER_URL") or DEFAULT_URL)
        self._timeout = timeout
        self._sleep = sleep
        self._clock = clock
        self._jitter = jitter
        key = api_key or os.environ.get("INTERPRETER_API_KEY")
        self.authorization: Mapping[str, str] = {"Authorization": f"Bearer {key}"} if key else {}
        """The header that says who asks."""
        try:
            headers = httpx.Headers(self.authorization, encoding="ascii")
        except UnicodeEncodeError:
            raise ConfigurationError("the API key holds characters that cannot be sent in a header") from None
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            transport=transport,
            # A service on this machine is never behind a proxy, whatever the environment says of others.
            trust_env=not self.is_local,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=_KEPT_SECONDS),
        )

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine."""
        return is_loopback(self.url.host)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def send(self, call: Call) -> None:
        """Make a request whose answer says nothing. Raises InterpreterError."""
        async with self.open(call) as response:
            await response.aread()

    async def get(self, call: Call, model: type[Model]) -> Model:
        """Make a request and parse its answer. Raises InterpreterError."""
        async with self.open(call) as response:
            data = await response.aread()
        try:
            return model.model_validate_json(data)
        except ValidationError as error:
            fault = error.errors()[0]
            where = ".".join(str(part) for part in fault["loc"]) or "all of it"
            raise ServiceError(
                f"the answer to {call.method} {call.path} cannot be understood ({where}: {fault['msg']})",
                hint="Look whether INTERPRETER_URL leads to the service, and whether its version is this client's",
            ) from None

    async def events(self, call: Call) -> AsyncGenerator[Event]:
        """Make a request and give the events of its answer, up to and with ``done``. Raises InterpreterError."""
        parser = EventParser()
        async with self.open(
            call, headers=_EVENTS, quiet=max(self._timeout + call.seconds, _QUIET_SECONDS)
        ) as response:
            async for piece in response.aiter_bytes():
                for event in parser.feed(piece):
                    told = _event(event.data)
                    yield told
                    if told["type"] == "done":
                        return
        raise ServiceUnreachable(
            f"{self.url} ended the stream before its end", hint="The service may have been stopped"
        )

    @asynccontextmanager
    async def open(
        self, call: Call, *, headers: Mapping[str, str] | None = None, quiet: float | None = None
    ) -> AsyncGenerator[httpx.Response]:
        """The answer to a request, not read yet; it was a success. ``quiet``: seconds that it may be silent.

        Raises InterpreterError, also while it is read.
        """
        read = quiet if quiet is not None else self._timeout + call.seconds
        with self._told():
            response = await self._tried(call, dict(headers or {}), httpx.Timeout(self._timeout, read=read))
            try:
                yield response
            finally:
                await response.aclose()

    async def _tried(self, call: Call, headers: dict[str, str], timeout: httpx.Timeout) -> httpx.Response:
        deadline = self._clock() + self._timeout
        tries = 1
        while True:
            outcome = await self._try(call, headers, timeout)
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            pause = pause_before_retry(call, outcome, tries, self._jitter())
            last = pause is None or self._clock() + pause > deadline
            if isinstance(outcome, httpx.Response):
                try:
                    body = await outcome.aread() if last else b""
                finally:
                    await outcome.aclose()
                if last:
                    raise error_from_answer(outcome.status_code, body, retry_after=retry_after(outcome.headers))
            elif last:
                raise outcome
            await self._sleep(pause or 0)
            tries += 1

    async def _try(
        self, call: Call, headers: dict[str, str], timeout: httpx.Timeout
    ) -> httpx.Response | httpx.TransportError:
        content: AsyncIterable[bytes] | bytes | None = call.content() if call.content else None
        if call.body is not None:
            # As ASCII: a lone surrogate is escaped then, and the service says what it thinks of it.
            content, headers = json.dumps(call.body).encode(), {**headers, "Content-Type": "application/json"}
        try:
            query = query_of(call.params)
            request = self._http.build_request(
                call.method,
                f"{call.path}?{query}" if query else call.path,
                content=content,
                headers={**headers, **call.headers},
                timeout=timeout,
            )
        except UnicodeEncodeError:
            raise InvalidRequest("a name or value cannot be sent: it is no text") from None
        try:
            return await self._http.send(request, stream=True)
        except httpx.TransportError as error:
            return error

    @contextlib.contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServiceUnreachable(
                f"no service answers at {self.url}: {error or 'it took too long'}",
                hint="Start one with `interpreter serve`, or set INTERPRETER_URL",
            ) from error
        except httpx.TimeoutException as error:
            raise ServiceUnreachable(f"{self.url} did not answer in time", hint="Give the client more time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceUnreachable(f"the connection to {self.url} broke: {error}") from error


def _checked_url(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigurationError(
            f"{text!r} is not the address of a service", hint="INTERPRETER_URL looks like http://127.0.0.1:8888"
        )
    return url


def _event(data: str) -> Event:
    try:
        event: Any = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):  # pyright: ignore[reportUnknownMemberType]
        raise ServiceError("the service sent an event that cannot be understood")
    return event  # pyright: ignore[reportUnknownVariableType]
