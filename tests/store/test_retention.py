"""Retention: what is past its time goes, nothing else does, and the room is given back a little at a time."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from rows import done, running, session

from interpreter.errors import HostError
from interpreter.store.database import Database, Work, open_database
from interpreter.store.paging import Page
from interpreter.store.records import State
from interpreter.store.retention import KeptDays, Retention
from interpreter.store.store import Store

DAY = 86_400.0
NOW = 1000 * DAY


class Hourly:
    """A clock that stands still, and ends whoever has slept on it often enough."""

    def __init__(self, sleeps: int = 0) -> None:
        self.left = sleeps
        self.slept: list[float] = []

    def now(self) -> float:
        return NOW

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) >= self.left:
            raise StopAsyncIteration


async def account(database: Database, session_id: str, sampled_at: float) -> None:
    def write(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO accounts VALUES (?, 't', 'base', 0, ?, NULL)", (session_id, int(sampled_at)))
        connection.execute("INSERT INTO usage VALUES (?, ?, 1, 1, 1, 1, 1)", (session_id, int(sampled_at)))

    await database.run(write)


async def count(database: Database, table: str) -> int:
    return await database.read(lambda connection: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


async def test_sessions_go_with_what_belongs_to_them_when_their_days_are_over(store: Store) -> None:
    old, new = NOW - 11 * DAY, NOW - 9 * DAY
    await store.save(session("old", State.STOPPED, created_at=old, stopped_at=old))
    await store.save(session("crashed", State.FAILED, created_at=old, stopped_at=old))
    await store.save(session("new", State.STOPPED, created_at=old, stopped_at=new))
    await store.save(session("alive", created_at=old))
    await store.save(session("paused", State.PAUSED, created_at=old))
    for number in range(5):
        await store.save_execution(done(f"e{number}", new, session_id="old"))
    await store.save_execution(done("kept", new, session_id="new"))
    deleted = await Retention(store.database, KeptDays(10, 10, 10), Hourly()).sweep()
    assert deleted == {"results": 5, "sessions": 2, "accounts": 0}
    assert {record.id for record in (await store.page(Page()))[0]} == {"new", "alive", "paused"}
    assert await store.find_execution("new", "kept") is not None


async def test_results_go_before_their_sessions_and_what_runs_stays(store: Store) -> None:
    old = NOW - 11 * DAY
    await store.save(session())
    for number in range(5):
        await store.save_execution(done(f"e{number}", old))
    await store.save_execution(done("new", NOW - 9 * DAY))
    await store.save_execution(running("runs", old))
    assert (await Retention(store.database, KeptDays(0, 10, 0), Hourly()).sweep())["results"] == 5
    records, _ = await store.list_executions("s", Page())
    assert [record.id for record in records] == ["new", "runs"]


async def test_what_was_used_outlives_its_session_and_goes_by_its_own_days(store: Store) -> None:
    database = store.database
    await store.save(session("old", State.STOPPED, stopped_at=NOW - 30 * DAY))
    await account(database, "old", NOW - 30 * DAY)
    await account(database, "older", NOW - 50 * DAY)
    await store.save(session("paused", State.PAUSED))
    await account(database, "paused", NOW - 50 * DAY)
    assert await Retention(database, KeptDays(10, 10, 40), Hourly()).sweep() == {
        "results": 0,
        "sessions": 1,
        "accounts": 1,
    }
    assert await count(database, "accounts") == await count(database, "usage") == 2


async def test_zero_days_are_for_ever(store: Store) -> None:
    await store.save(session("s", State.STOPPED, stopped_at=0.0))
    await store.save_execution(done("e", 0.0))
    await account(store.database, "s", 0)
    deleted = await Retention(store.database, KeptDays(0, 0, 0), Hourly()).sweep()
    assert not any(deleted.values())


async def test_the_disk_gets_its_room_back_and_nobody_waits_for_all_of_it(database_path: Path) -> None:
    async with open_database(database_path) as database:
        store = Store(database)
        await store.save(session())
        for number in range(20):
            await store.save_execution(done(f"e{number}", 0.0, result=bytes(1_000_000)))
    full = database_path.stat().st_size
    async with open_database(database_path) as database:
        turns: list[int] = []
        run = database.run

        async def counted(work: Work[Any]) -> Any:
            turns.append(1)
            return await run(work)

        database.run = counted  # type: ignore[method-assign]
        await Retention(database, KeptDays(1, 1, 1), Hourly()).sweep()
    assert full > 20_000_000
    assert database_path.stat().st_size < full / 20
    assert len(turns) > 10


async def test_it_looks_every_hour_also_after_the_database_could_not_be_written(store: Store) -> None:
    class Full(Database):
        def __init__(self) -> None:
            self.asked = 0

        async def run(self, work: Work[Any]) -> Any:
            self.asked += 1
            raise HostError("no")

    full, clock = Full(), Hourly(3)
    with pytest.raises(StopAsyncIteration):
        await Retention(full, KeptDays(1, 1, 1), clock).run()
    assert full.asked == 3
    assert clock.slept == [3600.0] * 3
