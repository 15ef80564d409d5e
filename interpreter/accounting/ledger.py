"""The ledger: what each session used in each second.

Once a second every machine is read. A row says how much processor time was used since the row before, and the most
memory that was seen up to then in the second. When a reading is late, or the service was not there for a while, the
next row stands for all seconds since the last: none is missed, none is counted twice. That holds when the clock is set,
too: from then on rows bear the new time, and what has passed is counted as it passed. What the database cannot take is
counted later. The rows of a session that is over are put together to one a minute.
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


@dataclass(frozen=True, slots=True)
class Row:
    """What a session used in the ``seconds`` seconds up to and with ``second`` (since 1970)."""

    session_id: str
    second: int
    seconds: int
    cpu_ns: int
    memory_bytes: int


@dataclass(slots=True)
class _Account:
    """What was counted already: the machine's processor time, and up to which second."""

    meter: Meter
    cpu_ns: int
    second: int
    memory_bytes: int = 0
    peak_bytes: int = 0
    is_new: bool = False

    def due(self, session_id: str, reading: Reading | None, second: int, least: int = 1) -> Row | None:
        """What a reading adds, when ``least`` seconds have passed."""
        if reading is None:
            return None
        self.memory_bytes = reading.memory_bytes
        self.peak_bytes = max(self.peak_bytes, self.memory_bytes)
        seconds = second - self.second
        if seconds < least:
            return None
        return Row(session_id, second, seconds, max(reading.cpu_ns - self.cpu_ns, 0), self.peak_bytes)

    def count(self, row: Row) -> None:
        """A row is written."""
        self.cpu_ns += row.cpu_ns
        # Not up to the row's second: meanwhile the clock may have been set, and the account moved along.
        self.second += row.seconds
        self.peak_bytes, self.is_new = self.memory_bytes, False


class Ledger:
    """Keeps the accounts of the sessions that live."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._closed: dict[str, list[Row]] = {}
        self._writing = asyncio.Lock()
        self._offset = clock.now() - clock.elapsed()

    async def open_account(self, session_id: str, meter: Meter) -> None:
        """Begin with a session; what its machine used before (in the pool) is not the session's."""
        reading = await asyncio.to_thread(meter.read)
        account = _Account(meter, reading.cpu_ns if reading else 0, self._second(), is_new=True)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO accounts SELECT id, tenant, template, ?, ?, ? FROM sessions WHERE id = ?",
                (account.cpu_ns, account.second, account.second - self._offset, session_id),
            )

        await self._database.run(write)
        self._accounts[session_id] = account

    async def resume_account(self, session_id: str, meter: Meter) -> None:
        """Go on with a session of an earlier service, from where that one stopped counting."""

        def read(connection: sqlite3.Connection) -> sqlite3.Row | None:
            values = (session_id,)
            return connection.execute("SELECT * FROM accounts WHERE session_id = ?", values).fetchone()

        row = await self._database.read(read)
        if row is None:
            # The service was killed in the moment between the session's start and its account's.
            await self.open_account(session_id, meter)
        else:
            # By what has passed: the clock may have been set while no service was there.
            elapsed = row["sampled_elapsed"]
            second = row["sampled_at"] if elapsed is None else round(elapsed + self._offset)
            self._accounts[session_id] = _Account(meter, row["cpu_ns"], second)

    async def close_account(self, session_id: str) -> None:
        """Count to the end and put the rows together. The machine must still be there for its last use to count.

        Raises DiskFull, HostError; then the rows are written as soon as they can be.
        """
        async with self._writing:
            account = self._accounts.pop(session_id, None)
            if account is None:
                return
            reading = await asyncio.to_thread(account.meter.read)
            # One that was shorter than a second counts as one; what came after the last full second joins its row.
            end = max(self._second(), account.second + account.is_new)
            row = account.due(session_id, reading, end, least=0)
            self._closed[session_id] = [row] if row else []
            await self._write_closed(session_id)

    async def sample(self) -> None:
        """Read every machine and write what was used since the last time. Raises DiskFull, HostError."""
        async with self._writing:
            accounts = dict(self._accounts)
            readings = await asyncio.to_thread(lambda: {key: account.meter.read() for key, account in accounts.items()})
            second = self._second()
            rows = [row for key, account in accounts.items() if (row := account.due(key, readings[key], second))]
            if rows:
                await self._database.run(lambda connection: self._write(connection, rows))
            for row in rows:
                accounts[row.session_id].count(row)
            for session_id in list(self._closed):
                await self._write_closed(session_id)

    def memory_of(self, session_id: str) -> int:
        """The memory in bytes that a session's machine held when it was last read; 0 before the first time."""
        account = self._accounts.get(session_id)
        return account.peak_bytes if account else 0

    async def run(self) -> None:
        """Sample at the beginning of every second, until cancelled."""
        while True:
            await self._clock.sleep(1.0 - self._clock.now() % 1.0)
            try:
                await self.sample()
            except InterpreterError as error:
                # The counters go on in the machines: the next row that can be written holds what this one lacks.
                log.warning("usage could not be written", error=str(error))

    def _second(self) -> int:
        """The second that it is now. When the clock was set, the accounts are moved along."""
        step = round(self._clock.now() - self._clock.elapsed() - self._offset)
        if step:
            log.warning("the clock was set", seconds=step)
            self._offset += step
            for account in self._accounts.values():
                account.second += step
        return int(self._clock.now())

    async def _write_closed(self, session_id: str) -> None:
        rows = self._closed[session_id]

        def write(connection: sqlite3.Connection) -> None:
            self._write(connection, rows)
            # Compacted rows stand at negative minutes until the old ones are gone.
            connection.execute(_COMPACT, {"id": session_id})
            connection.execute("DELETE FROM usage WHERE session_id = ? AND second >= 0", (session_id,))
            connection.execute("UPDATE usage SET second = -second * 60 WHERE session_id = ?", (session_id,))

        await self._database.run(write)
        del self._closed[session_id]

    def _write(self, connection: sqlite3.Connection, rows: list[Row]) -> None:
        connection.executemany(
            # A row without a second of its own meets the one before it; any, an older one after the clock was set back.
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " seconds = seconds + excluded.seconds, cpu_ns = cpu_ns + excluded.cpu_ns,"
            " memory_bytes = max(memory_bytes, excluded.memory_bytes),"
            " memory_byte_seconds = memory_byte_seconds + excluded.memory_byte_seconds,"
            " billed_byte_seconds = billed_byte_seconds + excluded.billed_byte_seconds",
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
            "UPDATE accounts SET cpu_ns = cpu_ns + ?, sampled_at = ?, sampled_elapsed = ? WHERE session_id = ?",
            [(row.cpu_ns, row.second, row.second - self._offset, row.session_id) for row in rows],
        )
