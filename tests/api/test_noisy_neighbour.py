"""What one session may cost another, and the service: `1+1` beside each kind of noise, and the service's memory.

The service runs as users run it, in a process of its own, so that what is measured is the service alone.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from served import own_home
from test_takeover import serving

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

NOISY_SECONDS = 240.0
MEMORY_MB = 200
"""What the service may hold more than when it is idle, whatever one session does."""
FLOOR = 0.3
"""Seconds within which an answer is as good as at once, however quick it was in quiet: computers differ."""
ZEROS = "from IPython.display import display\ndisplay({'application/json': [0] * 5_000_000}, raw=True)"
OBJECTS = "from IPython.display import display\ndisplay({'application/json': [{}] * 5_000_000}, raw=True)"
PRINTS = "for n in range(3000): print(n, flush=True)"
OUTPUT = "print('x' * 9_900_000)"


@dataclass
class Neighbours:
    """A service with two sessions: one makes noise, the other is asked meanwhile."""

    client: httpx.AsyncClient
    pid: int
    noisy: str
    quiet: str

    async def execute(self, session_id: str, code: str) -> httpx.Response:
        return await self.client.post(f"/v1/sessions/{session_id}/execute", json={"code": code}, timeout=NOISY_SECONDS)

    async def answer_time(self) -> float:
        began = time.monotonic()
        answer = await self.execute(self.quiet, "1+1")
        assert answer.json()["status"] == "ok"
        return time.monotonic() - began

    def memory_mb(self) -> float:
        status = Path("/proc", str(self.pid), "status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    async def times_beside(self, noise: Awaitable[object]) -> tuple[list[float], float]:
        """How long answers took while the noise lasted, and the most memory that the service had."""
        making = asyncio.ensure_future(noise)
        times: list[float] = []
        most = 0.0
        while not making.done():
            times.append(await self.answer_time())
            most = max(most, self.memory_mb())
        await making
        return times, most


@pytest.fixture(scope="module")
async def neighbours(
    engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Neighbours]:
    home = own_home(settings, tmp_path_factory.mktemp("neighbours") / "home")
    async with serving(home) as (process, client):
        made = [(await client.post("/v1/sessions", json={"timeout_seconds": 3600})).json()["id"] for _ in range(2)]
        neighbours = Neighbours(client, process.pid, *made)
        for session_id in made:
            await neighbours.execute(session_id, "1+1")
        yield neighbours


async def many(neighbours: Neighbours, code: str, count: int) -> None:
    for _ in range(count):
        answer = await neighbours.execute(neighbours.noisy, code)
        assert answer.status_code == 200, answer.text


Noise = Callable[[Neighbours], Awaitable[object]]
NOISES: dict[str, Noise] = {
    "many numbers": lambda it: many(it, ZEROS, 2),
    "many objects": lambda it: many(it, OBJECTS, 2),
    "many prints": lambda it: many(it, PRINTS, 1),
    "long code": lambda it: many(it, "'\U0001f600" + "x" * 7_900_000 + "';", 10),
    "kept outputs": lambda it: many(it, OUTPUT, 8),
    "bodies of many objects": lambda it: bodies(it, 20),
}


async def bodies(neighbours: Neighbours, count: int) -> None:
    body = b'{"code": [' + b"{}," * (16 * 1024 * 1024 // 3 - 10) + b"{}]}"
    headers = {"Content-Type": "application/json"}
    for _ in range(count):
        answer = await neighbours.client.post("/v1/sessions", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES.keys())
async def test_another_session_answers_beside_noise_and_memory_stays_bounded(
    neighbours: Neighbours, noise: Noise
) -> None:
    quiet = [await neighbours.answer_time() for _ in range(15)]
    before = neighbours.memory_mb()
    times, most = await neighbours.times_beside(noise(neighbours))
    figures = (statistics.median(quiet), statistics.median(times), max(quiet), max(times), len(times), most - before)
    # The noisy guest itself takes a processor; what the service takes comes on top.
    assert statistics.median(times) <= max(4 * statistics.median(quiet), FLOOR), figures
    assert max(times) <= max(8 * max(quiet), 5 * FLOOR), figures
    assert most - before <= MEMORY_MB, figures
