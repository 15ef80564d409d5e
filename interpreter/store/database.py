"""The service's one SQLite file: opened, brought to the current schema, used from one thread."""

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final, TypeVar

from interpreter.errors import DiskFull, HostError

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
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
-- One row for each second of a living session, one for each minute of one that is over. `seconds` tells how many
-- seconds a row stands for.
CREATE TABLE usage (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, second INTEGER NOT NULL,
    seconds INTEGER NOT NULL, cpu_ns INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL, memory_byte_seconds INTEGER NOT NULL,
    -- With the least that a second is billed for, whatever was used.
    billed_byte_seconds INTEGER NOT NULL,
    PRIMARY KEY (session_id, second)
) STRICT, WITHOUT ROWID;
"""

T = TypeVar("T")


class Database:
    """One connection in one thread; each call of `run` is one transaction."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a transaction of its own, committed unless it raises. Raises DiskFull, HostError."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work))

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._connection:
                return work(self._connection)
        except sqlite3.OperationalError as error:
            raise _explained(error) from error


@asynccontextmanager
async def open_database(path: Path) -> AsyncGenerator[Database]:
    """Open the database, making it when there is none. Raises HostError, DiskFull."""
    thread = ThreadPoolExecutor(1, "database")
    loop = asyncio.get_running_loop()
    try:
        with closing(await loop.run_in_executor(thread, _open, path)) as connection:
            yield Database(connection, thread)
            # What was handed in last is still written.
            await loop.run_in_executor(thread, connection.execute, "PRAGMA optimize")
    finally:
        thread.shutdown()


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Closed from the loop's thread, when the other one has nothing left to do.
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        # Write-ahead log without a sync per commit: a crash of the service loses nothing, one of the host seconds.
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON", "busy_timeout = 5000"):
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            connection.close()
            raise HostError(f"{path} was written by another version of the service", hint="Move it away, or upgrade")
        path.chmod(0o600)
    except sqlite3.DatabaseError as error:
        raise _explained(error, path) from error
    except OSError as error:
        raise HostError(f"{path} cannot be opened: {error.strerror}") from None
    return connection


def _explained(error: sqlite3.DatabaseError, path: Path | None = None) -> HostError:
    if "full" in str(error):
        return DiskFull("no room is left for the service's database", hint="Free some, or move INTERPRETER_HOME")
    where = f"{path} " if path else "the service's database "
    return HostError(f"{where}cannot be used: {error}", hint="Look at its rights, or restore it from a backup")
