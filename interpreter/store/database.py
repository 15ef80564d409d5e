"""The service's one SQLite file: one connection that writes, some that read beside it, each in a thread.

The write-ahead log lets readers see the last whole state while another is written: however long a list takes, a new
session and the ledger do not wait for it.
"""

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeVar

from interpreter.errors import DiskFull, HostError
from interpreter.store.migrations import migrate

_READERS: Final = 3
_WAL_BYTES: Final = 64 * 1024 * 1024
"""The log is cut to this after it was longer."""
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]


class Database:
    """Made by `open_database`. Each call of `run` or `read` is one transaction."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self._path = path
        self._writing = _threads(stack, 1, "database")
        self._reading = _threads(stack, _READERS, "database-reader")
        self._readers: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._writer: sqlite3.Connection | None = None

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect, bring the file to the newest form. Raises HostError, DiskFull."""
        loop = asyncio.get_running_loop()
        # Closed from the loop's thread, when the others have nothing left to do.
        self._writer = stack.enter_context(closing(await loop.run_in_executor(self._writing, _open_writer, self._path)))
        for _ in range(_READERS):
            reader = await loop.run_in_executor(self._reading, _open_reader, self._path)
            self._readers.put(stack.enter_context(closing(reader)))
        stack.push_async_callback(self._finish)

    async def run(self, work: Work[T]) -> T:
        """Do ``work`` in a transaction that may write, committed unless it raises. Raises DiskFull, HostError."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writing, self._write, work))

    async def read(self, work: Work[T]) -> T:
        """Do ``work``, which only reads, beside whoever writes; it sees one state throughout. Raises HostError."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._reading, self._read, work))

    def _write(self, work: Work[T]) -> T:
        assert self._writer is not None  # noqa: S101  (opened before anybody has it)
        with errors_of(self._path), transaction(self._writer):
            return work(self._writer)

    def _read(self, work: Work[T]) -> T:
        connection = self._readers.get()
        try:
            with errors_of(self._path), transaction(connection, "BEGIN"):
                return work(connection)
        finally:
            self._readers.put(connection)

    async def _finish(self) -> None:
        # What was handed in last is still written; that the statistics could not be is no reason to fail.
        with contextlib.suppress(HostError):
            await self.run(lambda connection: connection.execute("PRAGMA optimize").fetchall())
        # Before the connections are closed: what reads now may end.
        self._reading.shutdown()
        self._writing.shutdown()


@asynccontextmanager
async def open_database(path: Path) -> AsyncGenerator[Database]:
    """Open the database, making it when there is none. Raises HostError, DiskFull."""
    async with AsyncExitStack() as stack:
        database = Database(path, stack)
        await database.open(stack)
        yield database


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Generator[None]:
    """All that is done in the block, or nothing of it."""
    connection.execute(begin)
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # Some errors have ended it already.
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def errors_of(path: Path) -> Generator[None]:
    """Turn what SQLite raises into ours. Raises DiskFull, HostError."""
    try:
        yield
    except sqlite3.Error as error:
        # The low byte is the error, the others say more of it (sqlite.org/rescode.html).
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise DiskFull(
                "no room is left for the service's database", hint="Free some, or move INTERPRETER_HOME"
            ) from error
        if code in _DAMAGED:
            raise HostError(
                f"the database {path} is damaged: {error}",
                hint="Stop the service; put a backup in its place, or save what can be read: sqlite3 FILE .recover",
            ) from error
        raise HostError(
            f"the database {path} cannot be used: {error}", hint="Look at its rights and its disk"
        ) from error


def _threads(stack: AsyncExitStack, count: int, name: str) -> ThreadPoolExecutor:
    return stack.enter_context(ThreadPoolExecutor(count, name))


def _open_writer(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Before SQLite opens it, which gives its log and its index the same mode.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        for beside in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + beside).chmod(0o600)
    except OSError as error:
        raise HostError(f"{path} cannot be opened: {error.strerror}") from None
    with errors_of(path):
        connection = _connect(path)
        try:
            # Freed room can be given back in small pieces; only an empty file takes this without being rewritten.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            # Write-ahead log without a sync per commit: a crash of the service loses nothing, one of the host seconds.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
            migrate(connection, path)
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
    return connection


def _open_reader(path: Path) -> sqlite3.Connection:
    with errors_of(path):
        connection = _connect(path)
        connection.execute("PRAGMA query_only = ON")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # Transactions are begun here, by name, not by the module's guess.
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA busy_timeout = 5000")
    return connection
