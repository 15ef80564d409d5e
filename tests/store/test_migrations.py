"""A database of every earlier form comes to the newest with all that was in it, or stays exactly as it was."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from interpreter.accounting.usage import GroupBy, Rates, UsageReader
from interpreter.errors import HostError
from interpreter.store import migrations
from interpreter.store.database import open_database
from interpreter.store.migrations import copy_of
from interpreter.store.paging import Page
from interpreter.store.store import Store

NEWEST = 3
FORM_1 = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, template TEXT NOT NULL, state TEXT NOT NULL,
    created_at REAL NOT NULL, stopped_at REAL, record TEXT NOT NULL,
    -- The counters of the machine as they were last read, and the second of that: what comes after is new.
    cpu_ns INTEGER NOT NULL DEFAULT 0, sampled_at INTEGER
) STRICT;
CREATE INDEX sessions_by_time ON sessions (created_at DESC, id DESC);
CREATE INDEX sessions_by_state ON sessions (state);
CREATE TABLE executions (
    id TEXT PRIMARY KEY, session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    created_at REAL NOT NULL, record TEXT NOT NULL
) STRICT;
CREATE INDEX executions_by_session ON executions (session_id, created_at);
CREATE TABLE usage (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, second INTEGER NOT NULL,
    seconds INTEGER NOT NULL, cpu_ns INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL, memory_byte_seconds INTEGER NOT NULL,
    billed_byte_seconds INTEGER NOT NULL,
    PRIMARY KEY (session_id, second)
) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""
RESULT = {"execution_id": "e1", "context_id": "main", "status": "ok", "outputs": [{"type": "stream", "text": "ä\n"}]}


def record(session_id: str, state: str, **more: object) -> str:
    known = {"tenant": "t", "template": "base", "created_at": 1.0, "last_used_at": 2.0, "timeout_seconds": 900}
    return json.dumps({"id": session_id, "state": state, "cpus": 1, "memory_mb": 512, **known, **more})


def execution(execution_id: str, state: str, result: dict[str, Any] | None, **more: object) -> str:
    known = {"session_id": "old", "context": "main", "created_at": 3.0, "ended_at": None}
    return json.dumps({"id": execution_id, "state": state, "result": result, **known, **more})


@pytest.fixture
def form_1(tmp_path: Path) -> Path:
    """A file as the first form of the service left it."""
    path = tmp_path / "service.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(FORM_1)
        sessions = [
            (
                "old",
                "stopped",
                9.0,
                record("old", "stopped", stopped_at=9.0, env={"TOKEN": "spent"}, name="mine"),
                5,
                8,
            ),
            ("new", "running", None, record("new", "running", env={"TOKEN": "fresh"}, contexts=["main"]), 7, 1000),
            ("odd", "running", None, "no JSON", 0, None),
        ]
        connection.executemany("INSERT INTO sessions VALUES (?, 't', 'base', ?, 1.0, ?, ?, ?, ?)", sessions)
        executions = [
            ("e1", execution("e1", "done", RESULT, ended_at=4.0)),
            ("e2", execution("e2", "running", None)),
            ("e3", "no JSON"),
        ]
        connection.executemany("INSERT INTO executions VALUES (?, 'old', 3.0, ?)", executions)
        connection.execute("INSERT INTO usage VALUES ('old', 0, 8, 5, 100, 800, 1073741824)")
        connection.commit()
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]


def form_of(path: Path) -> tuple[int, int, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
        kinds = "SELECT type, name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
        return version, vacuum, connection.execute(kinds).fetchall()


async def test_all_that_was_there_is_there_in_the_newest_form(form_1: Path) -> None:
    async with open_database(form_1) as database:
        store = Store(database)
        old, new = await store.find("old"), await store.find("new")
        assert old is not None
        assert new is not None
        assert (old.name, old.stopped_at, old.env) == ("mine", 9.0, {"TOKEN": ""})
        assert (new.env, new.contexts) == ({"TOKEN": "fresh"}, ["main"])
        assert [one.id for one in (await store.unfinished()).records] == ["new"]
        listed, _ = await store.list_executions("old", Page())
        assert {(one.id, one.state, one.ended_at) for one in listed} == {("e1", "done", 4.0), ("e2", "running", None)}
        found = await store.find_execution("old", "e1")
        assert found is not None
        assert json.loads(found.result or b"") == RESULT
        reader = UsageReader(database, Rates(1, 1))
        assert (await reader.total("old")).seconds == 8
        assert [(one.group, one.seconds) for one in await reader.groups(0, 100, GroupBy.TENANT, None)] == [("t", 8)]
        counters = "SELECT session_id, cpu_ns, sampled_at FROM accounts ORDER BY session_id"
        rows = await database.read(lambda connection: [tuple(row) for row in connection.execute(counters)])
        assert rows == [("new", 7, 1000), ("old", 5, 8)]


async def test_a_file_that_was_brought_up_has_the_form_of_a_new_one(form_1: Path, tmp_path: Path) -> None:
    for path in (form_1, tmp_path / "new.sqlite"):
        async with open_database(path):
            pass
    assert form_of(form_1) == form_of(tmp_path / "new.sqlite")
    assert form_of(form_1)[0] == NEWEST


async def test_a_copy_from_before_is_kept_that_nobody_else_may_read(form_1: Path) -> None:
    before = dump(form_1)
    async with open_database(form_1):
        pass
    copy = copy_of(form_1, 1)
    assert dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600


async def test_a_step_that_fails_leaves_the_file_as_it_was(form_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(form_1)
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_STEPS", (*migrations._STEPS, "CREATE TABLE more (x); SELECT nothing FROM more;"))
        with pytest.raises(HostError, match="nothing"):
            async with open_database(form_1):
                pytest.fail("it was opened")
    assert dump(form_1) == before
    async with open_database(form_1):
        pass
    assert form_of(form_1)[0] == NEWEST


async def test_a_copy_that_cannot_be_kept_stops_it_before_anything_is_changed(form_1: Path) -> None:
    before = dump(form_1)
    copy_of(form_1, 1).mkdir()
    with pytest.raises(HostError, match="form-1 cannot be written"):
        async with open_database(form_1):
            pytest.fail("it was opened")
    assert dump(form_1) == before


async def test_a_newer_form_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    async with open_database(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")
    before = dump(path)
    with pytest.raises(HostError, match=rf"newer version.*Upgrade the service.*form-{NEWEST}"):
        async with open_database(path):
            pytest.fail("it was opened")
    assert dump(path) == before


async def test_a_copy_put_back_is_brought_up_again(form_1: Path) -> None:
    async with open_database(form_1):
        pass
    form_1.unlink()
    shutil.copy(copy_of(form_1, 1), form_1)
    async with open_database(form_1) as database:
        assert await Store(database).find("new") is not None
