"""The ledger on a clock and a meter of the tests' own: each second once, over late readings and restarts."""

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from interpreter.accounting.ledger import MINIMUM_BYTES, Ledger
from interpreter.accounting.meter import Meter, Reading
from interpreter.accounting.usage import GroupBy, Rates, UsageReader
from interpreter.errors import DiskFull, HostError
from interpreter.store.database import Database, open_database
from interpreter.store.paging import Page
from interpreter.store.records import SessionRecord, State
from interpreter.store.store import Store


class Counter(Meter):
    """A machine's counters as the tests set them."""

    def __init__(self) -> None:
        self.now: Reading | None = Reading(0, 0)

    def read(self) -> Reading | None:
        return self.now


class StillClock:
    """Shows what it is set to."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.step = 0.0

    def now(self) -> float:
        return self.seconds + self.step

    def elapsed(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise NotImplementedError


@pytest.fixture
async def database(tmp_path: Path) -> AsyncGenerator[Database]:
    async with open_database(tmp_path / "x" / "service.sqlite") as database:
        yield database


async def add(database: Database, session_id: str = "s", **more: object) -> None:
    record = {"tenant": "t", "template": "base", "state": State.RUNNING, "created_at": 1.0, "last_used_at": 1.0}
    size = {"timeout_seconds": 1, "cpus": 1, "memory_mb": 1}
    await Store(database).save(SessionRecord.model_validate({"id": session_id, **record, **size, **more}))


async def total(database: Database) -> tuple[int, float]:
    usage = await UsageReader(database, Rates(1, 1)).total("s")
    return usage.seconds, usage.cpu_seconds


async def test_a_late_reading_stands_for_all_seconds_since_the_last(database: Database) -> None:
    clock, meter = StillClock(1000.2), Counter()
    ledger = Ledger(database, clock)
    await add(database)
    meter.now = Reading(7_000_000_000, 10)
    await ledger.open_account("s", meter)
    clock.seconds, meter.now = 1001.0, Reading(7_500_000_000, 20)
    await ledger.sample()
    clock.seconds, meter.now = 1005.9, Reading(9_000_000_000, 5)
    await ledger.sample()
    await ledger.sample()
    series = await UsageReader(database, Rates(1, 1)).series("s", 0, 2000)
    assert [(point.second, point.seconds, point.cpu_seconds) for point in series] == [(1001, 1, 0.5), (1005, 4, 1.5)]
    # The most that was seen since the row before.
    assert [point.memory_bytes for point in series] == [20, 20]


async def test_another_ledger_goes_on_where_the_first_was_killed(database: Database) -> None:
    clock, meter = StillClock(1000.0), Counter()
    await add(database)
    first = Ledger(database, clock)
    await first.open_account("s", meter)
    clock.seconds, meter.now = 1001.0, Reading(1_000_000_000, 1)
    await first.sample()
    # Killed here; the machine goes on for nine seconds.
    second = Ledger(database, clock)
    clock.seconds, meter.now = 1010.0, Reading(3_000_000_000, 1)
    await second.resume_account("s", meter)
    await second.sample()
    assert await total(database) == (10, 3.0)


@pytest.mark.parametrize("step", [3600.0, -3600.0, 1.4, -2.0])
async def test_when_the_clock_is_set_what_passed_is_billed_once(database: Database, step: float) -> None:
    clock, meter = StillClock(100_000.2), Counter()
    await add(database)
    ledger = Ledger(database, clock)
    await ledger.open_account("s", meter)
    for second in range(1, 11):
        if second == 6:
            clock.step = step
        clock.seconds, meter.now = 100_000.2 + second, Reading(second * 10**9, 1)
        await ledger.sample()
    # At most one second waits for its row yet, when the clock was not set by whole ones.
    seconds, cpu = await total(database)
    assert seconds in {9, 10}
    assert cpu == seconds
    await ledger.close_account("s")
    assert (await total(database))[1] == 10.0
    series = await UsageReader(database, Rates(1, 1)).series("s", 0, 2**40)
    if step == 3600.0:
        assert {point.second for point in series} >= {103_560 // 60 * 60}


@pytest.mark.parametrize("step", [0.0, 3600.0, -3600.0])
async def test_a_clock_that_was_set_while_no_service_was_there_changes_nothing(database: Database, step: float) -> None:
    clock, meter = StillClock(100_000.2), Counter()
    await add(database)
    first = Ledger(database, clock)
    await first.open_account("s", meter)
    clock.seconds, meter.now = 100_001.2, Reading(1_000_000_000, 1)
    await first.sample()
    # Killed here; the machine goes on for nine seconds.
    clock.seconds, clock.step, meter.now = 100_010.2, step, Reading(3_000_000_000, 1)
    second = Ledger(database, clock)
    await second.resume_account("s", meter)
    await second.sample()
    assert await total(database) == (10, 3.0)


async def test_what_the_database_could_not_take_is_counted_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, meter = StillClock(1000.0), Counter()
    await add(database)
    ledger = Ledger(database, clock)
    await ledger.open_account("s", meter)

    async def full(work: object) -> None:
        raise DiskFull("no room")

    clock.seconds, meter.now = 1003.0, Reading(2_000_000_000, 1)
    with monkeypatch.context() as patched:
        patched.setattr(database, "run", full)
        with pytest.raises(DiskFull):
            await ledger.sample()
        clock.seconds, meter.now = 1005.0, Reading(3_000_000_000, 1)
        with pytest.raises(DiskFull):
            await ledger.close_account("s")
    assert ledger.memory_of("s") == 0
    await ledger.sample()
    assert await total(database) == (5, 3.0)
    await ledger.sample()
    assert await total(database) == (5, 3.0)


async def test_a_machine_that_is_gone_adds_nothing(database: Database) -> None:
    clock, meter = StillClock(1000.0), Counter()
    await add(database)
    ledger = Ledger(database, clock)
    await ledger.open_account("s", meter)
    clock.seconds, meter.now = 1005.0, None
    await ledger.sample()
    await ledger.close_account("s")
    await ledger.close_account("s")
    assert await total(database) == (0, 0.0)


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 90), st.integers(0, 10**10), st.integers(0, 10**9)), min_size=1, max_size=20))
def test_putting_rows_together_keeps_the_sums(steps: list[tuple[float, int, int]]) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            async with open_database(Path(folder) / "db") as database:
                clock, meter = StillClock(1_000_000.5), Counter()
                await add(database)
                ledger = Ledger(database, clock)
                await ledger.open_account("s", meter)
                cpu = 0
                for seconds, used, memory in steps:
                    clock.seconds += seconds
                    cpu += used
                    meter.now = Reading(cpu, memory)
                    await ledger.sample()
                before = await UsageReader(database, Rates(1, 1)).total("s")
                await ledger.close_account("s")
                after = await UsageReader(database, Rates(1, 1)).total("s")
                # Closing counts the running second too; no processor time is lost or made.
                assert after.seconds == max(before.seconds, 1)
                assert before.seconds == 0 or after.cost == pytest.approx(before.cost, abs=(cpu / 1e9 + 1) / 3600)
                assert round(after.cpu_seconds * 1e9) == cpu
                assert after.memory_peak_bytes >= before.memory_peak_bytes
                series = await UsageReader(database, Rates(1, 1)).series("s", 0, 2**40)
                assert all(point.second % 60 == 0 for point in series)
                assert sum(point.seconds for point in series) == after.seconds

    asyncio.run(run())


async def test_costs_have_a_least_of_128_mb_for_each_second(database: Database) -> None:
    clock, meter = StillClock(1000.0), Counter()
    await add(database)
    ledger = Ledger(database, clock)
    await ledger.open_account("s", meter)
    clock.seconds, meter.now = 1010.0, Reading(3_600_000_000_000, 1)
    await ledger.close_account("s")
    usage = await UsageReader(database, Rates(2.0, 3600.0)).total("s")
    assert usage.cost == pytest.approx(2.0 + 10 * MINIMUM_BYTES / 1e9)


async def test_groups_are_by_tenant_template_and_day(database: Database) -> None:
    clock = StillClock(86_400.0 * 3)
    ledger = Ledger(database, clock)
    for session_id, tenant, template in (("s", "t", "base"), ("u", "t", "data"), ("v", "other", "base")):
        await add(database, session_id, tenant=tenant, template=template)
        meter = Counter()
        await ledger.open_account(session_id, meter)
        meter.now = Reading(1_000_000_000, 1)
    clock.seconds += 1
    await ledger.sample()
    reader = UsageReader(database, Rates(1, 1))
    seen = {
        kind: [(group.group, group.sessions) for group in await reader.groups(0, 2**33, kind, None)] for kind in GroupBy
    }
    assert seen == {
        GroupBy.TENANT: [("other", 1), ("t", 2)],
        GroupBy.TEMPLATE: [("base", 2), ("data", 1)],
        GroupBy.DAY: [("1970-01-04", 3)],
    }
    assert [group.sessions for group in await reader.groups(0, 2**33, GroupBy.DAY, "t")] == [2]


async def test_pages_go_through_all_sessions_once_also_when_times_are_equal(database: Database) -> None:
    for number in range(7):
        await add(database, f"s{number}", created_at=float(number // 3))
    seen: list[str] = []
    cursor = None
    while True:
        records, cursor = await Store(database).page(Page(2, cursor), tenant="t")
        seen += [record.id for record in records]
        if cursor is None:
            break
    assert seen == ["s6", "s5", "s4", "s3", "s2", "s1", "s0"]


async def test_a_change_that_fails_leaves_nothing_of_itself(database: Database) -> None:
    def half(connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE sessions SET state = 'x'")
        connection.execute("INSERT INTO nothing VALUES (1)")

    await add(database)
    with pytest.raises(HostError, match="nothing"):
        await database.run(half)
    record = await Store(database).find("s")
    assert record is not None
    assert record.state is State.RUNNING


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be looked at" * 100, b""])
async def test_a_file_that_is_no_database_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "service.sqlite"
    path.write_bytes(content)
    if not content:
        async with open_database(path):
            return
    with pytest.raises(HostError, match=r"service\.sqlite"):
        async with open_database(path):
            pytest.fail("it was opened")
