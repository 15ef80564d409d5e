"""Work in the background goes on after any error, is down meanwhile and says why, and ends when its owner does."""

import asyncio
import sqlite3

import pytest
from manual_clock import ManualClock

from interpreter.errors import DiskFull
from interpreter.sessions.supervised import LONGEST_PAUSE, Supervisor, cause_of

UNEXPECTED = [
    OSError(24, "Too many open files"),
    sqlite3.DatabaseError("malformed"),
    KeyError("x"),
    DiskFull("no room"),
]


class Work:
    """Fails as often as it is told to, then goes on until it is cancelled."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.began = 0
        self.cancelled = False
        self.step = asyncio.Event()

    async def __call__(self) -> None:
        self.began += 1
        self.step.set()
        if self.failures:
            raise self.failures.pop(0)
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled = True

    async def begins(self) -> None:
        async with asyncio.timeout(10):
            await self.step.wait()
        self.step.clear()


async def turn() -> None:
    """Let what is due run."""
    await asyncio.sleep(0)


async def is_down(supervisor: Supervisor, name: str, *, down: bool = True) -> None:
    async with asyncio.timeout(10):
        while (name in supervisor.down) is not down:
            await turn()


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
async def test_work_that_fails_is_down_with_its_cause_and_begun_anew_after_a_pause(error: Exception) -> None:
    clock, work = ManualClock(), Work(error)
    async with Supervisor(clock) as supervisor:
        supervisor.keep("guard", work)
        await work.begins()
        await is_down(supervisor, "guard")
        assert supervisor.down["guard"] == cause_of(error)
        clock.advance(1)
        await work.begins()
        # It has not run for long yet.
        assert "guard" in supervisor.down
        await asyncio.sleep(0)
        clock.advance(2)
        await is_down(supervisor, "guard", down=False)
        assert work.began == 2
    assert work.cancelled


async def test_what_it_waited_for_may_be_cancelled_without_ending_it() -> None:
    clock, work = ManualClock(), Work(asyncio.CancelledError())
    async with Supervisor(clock) as supervisor:
        supervisor.keep("ledger", work)
        await work.begins()
        await is_down(supervisor, "ledger")
        clock.advance(1)
        await work.begins()


async def test_pauses_grow_up_to_a_minute() -> None:
    clock, work = ManualClock(), Work(*(ValueError() for _ in range(9)))
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await ManualClock.sleep(clock, seconds)

    clock.sleep = sleep  # type: ignore[method-assign]
    async with Supervisor(clock) as supervisor:
        supervisor.keep("pool", work)
        for _ in range(8):
            await work.begins()
            await is_down(supervisor, "pool")
            await asyncio.sleep(0)
            clock.advance(LONGEST_PAUSE)
        assert max(pauses) == LONGEST_PAUSE
        assert sorted(pauses) == pauses


async def test_one_that_fails_stops_no_other() -> None:
    clock, good, bad = ManualClock(), Work(), Work(RuntimeError())
    async with Supervisor(clock) as supervisor:
        supervisor.keep("good", good)
        supervisor.keep("bad", bad)
        await is_down(supervisor, "bad")
        assert dict(supervisor.down) == {"bad": "RuntimeError"}
        assert not good.cancelled


async def test_work_that_returns_is_done_and_not_down() -> None:
    async with Supervisor(ManualClock()) as supervisor:
        await supervisor.keep("once", lambda: asyncio.sleep(0))
        assert not supervisor.down


async def test_what_is_stopped_is_not_down_any_more() -> None:
    async with Supervisor(ManualClock()) as supervisor:
        task = supervisor.keep("bad", Work(RuntimeError()))
        await is_down(supervisor, "bad")
        await supervisor.stop(task)
        assert not supervisor.down


async def test_its_end_waits_for_what_an_end_starts() -> None:
    ended: list[str] = []

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("last")

    async def first() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            supervisor.run("last", last())
            await asyncio.sleep(0)
            ended.append("first")

    async with Supervisor(ManualClock()) as supervisor:
        supervisor.run("first", first())
        await asyncio.sleep(0)
    assert ended == ["first", "last"]


def test_a_cause_holds_no_data_of_a_user() -> None:
    assert cause_of(ValueError("secret")) == "ValueError"
    assert cause_of(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
