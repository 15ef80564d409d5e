"""The ledger: what each session used in each second.

Once a second every machine is read. A row says how much processor time was used since the row before, and the most
memory that was seen up to then in the second. When a reading is late, or the service was not there for a while, the
next row stands for all seconds since the last: none is missed, none is counted twice. The rows of a session that is
over are put together to one a minute.
"""

import asyncio
import sqlite3
from dataclasses import dataclass
from typing import Final

import structlog

from interpreter.accounting.meter import Meter, Reading
from interpreter.clock import Clock
from interpreter.errors import InterpreterError
from interpreter.store.database import Database

log = structlog.get_logger(__name__)

_COMPACT = """
INSERT INTO usage SELECT session_id, -(second / 60), sum(seconds), sum(cpu_ns), max(memory_bytes),
    sum(memory_byte_seconds), sum(billed_byte_seconds) FROM usage WHERE session_id = :id GROUP BY second / 60
"""


MINIMUM_BYTES: Final = 128 * 1024 * 1024
"""Memory that each second is billed for at least; and one second is the least that a session is billed for."""


@dataclass(slots=True)
class _Account:
    meter: Meter
    cpu_ns: int
    second: int
    peak_bytes: int = 0
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """What a session used in the ``seconds`` seconds up to and with ``second`` (since 1970)."""

    session_id: str
    second: int
    seconds: int
    cpu_ns: int
    memory_bytes: int


class Ledger:
    """Keeps the accounts of the sessions that live."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    async def open_account(self, session_id: str, meter: Meter) -> None:
        """Begin with a session; what its machine used before (in the pool) is not the session's."""
        reading = await asyncio.to_thread(meter.read)
        second = int(self._clock.now())
        account = _Account(meter, reading.cpu_ns if reading else 0, second, is_new=True)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO accounts SELECT id, tenant, template, ?, ? FROM sessions WHERE id = ?",
                (account.cpu_ns, account.second, session_id),
            )

        await self._database.run(write)
        self._accounts[session_id] = account

    async def resume_account(self, session_id: str, meter: Meter) -> None:
        """Go on with a session of an earlier service, from where that one stopped counting."""

        def read(connection: sqlite3.Connection) -> sqlite3.Row | None:
            values = (session_id,)
            return connection.execute("SELECT cpu_ns, sampled_at FROM accounts WHERE session_id = ?", values).fetchone()

        row = await self._database.read(read)
        if row is None:
            # The service was killed in the moment between the session's start and its account's.
            await self.open_account(session_id, meter)
        else:
            self._accounts[session_id] = _Account(meter, row["cpu_ns"], row["sampled_at"])

    async def close_account(self, session_id: str) -> None:
        """Count to the end and put the rows together. The machine must still be there for its last use to count."""
        account = self._accounts.pop(session_id, None)
        if account is None:
            return
        reading = await asyncio.to_thread(account.meter.read)
        # A session that was shorter than a second counts as one; what came after the last full second joins its row.
        end = max(int(self._clock.now()), account.second + account.is_new)
        rows = _rows_of(session_id, account, reading, end, least=0)

        def write(connection: sqlite3.Connection) -> None:
            _write(connection, rows)
            # Compacted rows stand at negative minutes until the old ones are gone.
            connection.execute(_COMPACT, {"id": session_id})
            connection.execute("DELETE FROM usage WHERE session_id = ? AND second >= 0", (session_id,))
            connection.execute("UPDATE usage SET second = -second * 60 WHERE session_id = ?", (session_id,))

        await self._database.run(write)

    async def sample(self) -> None:
        """Read every machine and write what was used since the last time."""
        accounts = dict(self._accounts)
        readings = await asyncio.to_thread(lambda: {key: account.meter.read() for key, account in accounts.items()})
        now = int(self._clock.now())
        rows: list[Row] = []
        for key, reading in readings.items():
            # Closed meanwhile: that has counted to the end.
            if key in self._accounts:
                rows += _rows_of(key, accounts[key], reading, now)
        if rows:
            await self._database.run(lambda connection: _write(connection, rows))

    def memory_of(self, session_id: str) -> int:
        """The memory in bytes that a session's machine held when it was last read; 0 before the first time."""
        account = self._accounts.get(session_id)
        return account.peak_bytes if account else 0

    async def run(self) -> None:
        """Sample at the beginning of every second, until cancelled."""
        while True:
            now = self._clock.now()
            await self._clock.sleep(1.0 - now % 1.0)
            try:
                await self.sample()
            except InterpreterError as error:
                # The counters go on in the machines: the next row that can be written holds what this one lacks.
                log.warning("usage could not be written", error=str(error))


def _rows_of(session_id: str, account: _Account, reading: Reading | None, now: int, least: int = 1) -> list[Row]:
    """The row that is due when ``least`` seconds have passed, and the account brought up to it."""
    if reading is None:
        return []
    account.peak_bytes = max(account.peak_bytes, reading.memory_bytes)
    seconds = now - account.second
    if seconds < least:
        return []
    row = Row(session_id, now, seconds, max(reading.cpu_ns - account.cpu_ns, 0), account.peak_bytes)
    account.cpu_ns, account.second, account.peak_bytes = reading.cpu_ns, now, reading.memory_bytes
    account.is_new = False
    return [row]


def _write(connection: sqlite3.Connection, rows: list[Row]) -> None:
    connection.executemany(
        # Only a row without a second of its own may meet another one.
        "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET cpu_ns = cpu_ns + excluded.cpu_ns,"
        " memory_bytes = max(memory_bytes, excluded.memory_bytes) WHERE excluded.seconds = 0",
        [
            (
                *(row.session_id, row.second, row.seconds, row.cpu_ns),
                *(row.memory_bytes, row.memory_bytes * row.seconds),
                max(row.memory_bytes, MINIMUM_BYTES) * row.seconds,
            )
            for row in rows
        ],
    )
    # With the rows in one transaction: whoever goes on from here has written all that came before.
    connection.executemany(
        "UPDATE accounts SET cpu_ns = cpu_ns + ?, sampled_at = ? WHERE session_id = ?",
        [(row.cpu_ns, row.second, row.session_id) for row in rows],
    )
