"""Records: what is written comes back, lists read no more than they show, one bad record costs itself alone."""

import sqlite3
from pathlib import Path

import pytest
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st
from rows import done, running, session

from interpreter.errors import InvalidRequest
from interpreter.store.database import Database
from interpreter.store.paging import Page
from interpreter.store.records import State
from interpreter.store.store import ResultLimits, Store


async def spoil(database: Database, session_id: str, content: str) -> None:
    values = (content, session_id)
    await database.run(lambda connection: connection.execute("UPDATE sessions SET record = ? WHERE id = ?", values))


def bytes_read() -> int:
    """By all threads of this process so far, from the page cache too."""
    return int(Path("/proc/self/io").read_text().split()[1])


async def listed(store: Store, limit: int = 100) -> list[str]:
    """All executions of the session `s`, page by page."""
    seen: list[str] = []
    page = Page(limit)
    while True:
        records, cursor = await store.list_executions("s", page)
        seen += [record.id for record in records]
        if cursor is None:
            return seen
        page = Page(limit, cursor)


async def test_the_values_of_variables_are_there_while_it_lives_and_not_in_lists(store: Store) -> None:
    secret = session(env={"TOKEN": "hunter2"})
    await store.save(secret)
    assert await store.find("s") == secret
    assert (await store.unfinished()).records == [secret]
    records, _ = await store.page(Page())
    assert [record.env for record in records] == [{"TOKEN": ""}]


async def test_the_values_of_variables_are_forgotten_at_the_end(store: Store) -> None:
    await store.save(session(env={"TOKEN": "hunter2"}))
    await store.save(session(state=State.STOPPED, env={"TOKEN": "hunter2"}))
    found = await store.find("s")
    assert found is not None
    assert found.env == {"TOKEN": ""}

    def everything(connection: sqlite3.Connection) -> str:
        return str([tuple(row) for row in connection.execute("SELECT * FROM sessions")])

    assert "hunter2" not in await store.database.read(everything)


@pytest.mark.parametrize(
    "content", ["no JSON", "{}", '{"id": "bad", "state": "unheard of", "name": "hunter2"}', "[" * 9999]
)
async def test_a_record_that_cannot_be_read_costs_itself_alone(store: Store, content: str) -> None:
    for name in ("good", "bad", "fine"):
        await store.save(session(name))
    await spoil(store.database, "bad", content)
    with structlog.testing.capture_logs() as logs:
        unfinished = await store.unfinished()
        assert {record.id for record in unfinished.records} == {"good", "fine"}
        assert unfinished.unreadable == 1
        assert {record.id for record in (await store.page(Page()))[0]} == {"good", "fine"}
        assert await store.find("bad") is None
    assert [entry["session"] for entry in logs] == ["bad"] * 3
    assert "hunter2" not in str(logs)


async def test_pages_go_on_behind_a_record_that_cannot_be_read(store: Store) -> None:
    for number in range(5):
        await store.save(session(f"s{number}"))
    await spoil(store.database, "s3", "")
    first, cursor = await store.page(Page(2))
    second, last = await store.page(Page(3, cursor))
    assert [record.id for record in first + second] == ["s4", "s2", "s1", "s0"]
    assert last is None


@pytest.mark.parametrize("cursor", ["x", "", "_", "1.0x_s"])
async def test_what_is_no_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="no cursor"):
        await store.page(Page(1, cursor))
    with pytest.raises(InvalidRequest, match="no cursor"):
        await store.list_executions("s", Page(1, cursor))


async def test_a_result_comes_back_byte_for_byte_and_lists_do_without(store: Store) -> None:
    await store.save(session())
    odd = b'{"outputs": ["\\u0000", "\xc3\xa4"] }'
    await store.save_execution(done("e", result=odd))
    found = await store.find_execution("s", "e")
    assert found == done("e", result=odd)
    (record,), _ = await store.list_executions("s", Page())
    assert record.result is None
    assert await store.find_execution("other", "e") is None


async def test_a_list_of_executions_touches_none_of_their_results(store: Store) -> None:
    await store.save(session())
    for number in range(4):
        await store.save_execution(done(f"e{number}", result=b"x" * 3_000_000))

    before = bytes_read()
    records, _ = await store.list_executions("s", Page())
    assert len(records) == 4
    assert bytes_read() - before < 1_000_000


async def test_executions_come_in_pages_with_what_runs_among_them(store: Store) -> None:
    await store.save(session())
    for number in range(7):
        await store.save_execution(done(f"e{number}", float(number // 2)))
    assert await listed(store, 2) == ["e6", "e5", "e4", "e3", "e2", "e1", "e0"]
    live = [running("only-in-memory", 2.5), running("e1", 0.0), running("oldest", -1.0)]
    seen: list[tuple[str, str]] = []
    cursor = None
    while True:
        records, cursor = await store.list_executions("s", Page(3, cursor), live)
        seen += [(record.id, record.state) for record in records]
        if cursor is None:
            break
    expected = ["e6", "only-in-memory", "e5", "e4", "e3", "e2", "e1", "e0", "oldest"]
    assert [name for name, _ in seen] == expected
    assert {name for name, state in seen if state == "running"} == {"only-in-memory", "e1", "oldest"}


async def test_the_oldest_results_go_when_a_session_has_too_many(database: Database) -> None:
    store = Store(database, ResultLimits(count=3, size=1000))
    await store.save(session())
    await store.save(session("other"))
    await store.save_execution(done("theirs", 0.0, session_id="other"))
    await store.save_execution(running("runs", 0.5))
    for number in range(1, 6):
        await store.save_execution(done(f"e{number}", float(number)))
    assert await listed(store) == ["e5", "e4", "e3", "runs"]
    assert await store.find_execution("other", "theirs") is not None


async def test_the_oldest_results_go_when_they_are_too_big_but_never_the_last(database: Database) -> None:
    store = Store(database, ResultLimits(count=100, size=1000))
    await store.save(session())
    for number, size in enumerate((400, 400, 400)):
        await store.save_execution(done(f"e{number}", float(number), result=b"x" * size))
    assert await listed(store) == ["e2", "e1"]
    await store.save_execution(done("huge", 9.0, result=b"x" * 5000))
    assert await listed(store) == ["huge"]


async def test_what_ran_when_the_service_was_killed_is_lost_and_what_had_ended_is_not(store: Store) -> None:
    await store.save(session())
    await store.save_execution(running("ran"))
    await store.save_execution(done("was-done", result=b'{"status": "ok"}'))
    await store.lose_executions(9.0)
    ran, ended = await store.find_execution("s", "ran"), await store.find_execution("s", "was-done")
    assert ran is not None
    assert (ran.state, ran.ended_at) == ("done", 9.0)
    assert ran.result == b'{"execution_id":"ran","context_id":"main","status":"lost","outputs":[]}'
    assert ended == done("was-done", result=b'{"status": "ok"}')


@given(st.lists(st.tuples(st.floats(0, 1e10), st.text("ab", max_size=2)), unique_by=lambda one: one), st.integers(1, 5))
def test_a_cursor_leads_to_exactly_what_follows(keys: list[tuple[float, str]], limit: int) -> None:
    class One:
        def __init__(self, key: tuple[float, str]) -> None:
            self.created_at, self.id = key

    newest = [One(key) for key in sorted(keys, reverse=True)]
    seen: list[One] = []
    page = Page(limit)
    while True:
        kept, cursor = page.cut([one for one in newest if page.holds(one)][: limit + 1])
        seen += kept
        if cursor is None:
            break
        page = Page(limit, cursor)
    assert seen == newest
