"""Guests that burn processors: the service answers at once all the same, and another session gets its fair share.

Quiet and busy take turns, and only medians of the same run are compared: whatever else the computer does is in both.
"""

import os
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from served import own_home
from test_takeover import serving

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

BUSY = 2
ROUNDS = 3
SAMPLES = 15
SECONDS = 240.0
FACTOR = 4.0
"""A request may take so many times as long as in quiet, and one that has to wake a guest so many fair shares."""
SHARE = 2.5
"""Code may take so many times as long as its session's fair share of the processors makes it; 1.3 is what is seen."""
AT_ONCE = 0.03
"""Seconds that are as good as nothing, however quick it was in quiet."""
WORK = "sum(n * n for n in range(300_000))"
"""Takes a processor for some tenths of a second in emulation."""


class Computer:
    """A service with guests that burn processors when they are told to, and one that does what it is asked."""

    def __init__(self, client: httpx.AsyncClient, busy: list[str], asked: str) -> None:
        self._client = client
        self._busy = busy
        self._asked = asked

    @asynccontextmanager
    async def burning(self) -> AsyncGenerator[None]:
        """While the block runs."""
        for session_id in self._busy:
            path = f"/v1/sessions/{session_id}/execute"
            told = {"Accept": "text/event-stream"}
            code = {"code": "print('on', flush=True)\nwhile True: pass", "detach": True}
            async with self._client.stream("POST", path, json=code, headers=told, timeout=SECONDS) as answer:
                async for line in answer.aiter_lines():
                    if line == "event: stream":
                        break
        try:
            yield
        finally:
            for session_id in self._busy:
                answer = await self._client.post(f"/v1/sessions/{session_id}/interrupt", json={}, timeout=SECONDS)
                assert answer.status_code == 204, answer.text
                # It has ended when this has run behind it.
                await self.execute(session_id, "1")

    async def execute(self, session_id: str, code: str) -> None:
        path = f"/v1/sessions/{session_id}/execute"
        answer = await self._client.post(path, json={"code": code}, timeout=SECONDS)
        assert answer.json()["status"] == "ok", answer.text

    async def get(self, path: str) -> None:
        answer = await self._client.get(path, timeout=SECONDS)
        assert answer.status_code == 200, answer.text

    async def one_and_one(self) -> None:
        await self.execute(self._asked, "1+1")

    async def work(self) -> None:
        await self.execute(self._asked, WORK)


@pytest.fixture(scope="module")
async def computer(
    engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Computer]:
    home = own_home(settings, tmp_path_factory.mktemp("processors") / "home")
    async with serving(home) as (_, client):
        made = [(await client.post("/v1/sessions", json={"timeout_seconds": 3600})).json()["id"] for _ in range(3)]
        computer = Computer(client, made[:BUSY], made[BUSY])
        for session_id in made:
            await computer.execute(session_id, WORK)
        yield computer


Ask = Callable[[Computer], Awaitable[None]]


async def seconds(computer: Computer, ask: Ask, count: int) -> list[float]:
    times: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        await ask(computer)
        times.append(time.perf_counter() - began)
    return times


async def medians(computer: Computer, ask: Ask, count: int) -> tuple[float, float]:
    """In quiet, and while others burn."""
    quiet: list[float] = []
    busy: list[float] = []
    for _ in range(ROUNDS):
        quiet += await seconds(computer, ask, count)
        async with computer.burning():
            busy += await seconds(computer, ask, count)
    return statistics.median(quiet), statistics.median(busy)


@pytest.mark.parametrize("path", ["/healthz", "/v1/sessions"])
async def test_the_service_answers_at_once_beside_guests_that_burn(computer: Computer, path: str) -> None:
    quiet, busy = await medians(computer, lambda it: it.get(path), SAMPLES)
    assert busy <= max(FACTOR * quiet, AT_ONCE), (quiet, busy)


async def test_another_session_gets_its_fair_share_beside_guests_that_burn(computer: Computer) -> None:
    fair = max((BUSY + 1) / len(os.sched_getaffinity(0)), 1.0)
    quiet, busy = await medians(computer, lambda it: it.work(), 5)
    assert busy <= SHARE * fair * quiet, (quiet, busy, fair)
    quiet, busy = await medians(computer, lambda it: it.one_and_one(), 5)
    assert busy <= max(FACTOR * fair * quiet, 10 * AT_ONCE), (quiet, busy, fair)
