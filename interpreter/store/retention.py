"""What is kept for how long: once an hour what is older goes, in pieces so small that nobody waits for them."""

import sqlite3
from dataclasses import dataclass
from typing import Final

import structlog

from interpreter.clock import Clock
from interpreter.errors import HostError
from interpreter.store.database import Database

log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 3600.0
_DAY: Final = 86_400.0
_FREED_PAGES: Final = 256
"""Pages (4 KiB each) that are given back to the disk at once."""

# A few rows at once: of results, whose every page is touched to be freed, so many as have 2 MB together, or one.
_FEW: Final = """
DELETE FROM executions WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER upto AS place, sum(result_bytes) OVER upto AS bytes FROM ({})
        WINDOW upto AS (ROWS UNBOUNDED PRECEDING)
    ) WHERE place = 1 OR bytes <= 2000000
)
"""
_RESULTS: Final = _FEW.format(
    "SELECT id, result_bytes FROM executions WHERE state = 'done' AND ended_at < :before LIMIT 100"
)
_RESULTS_OF_SESSIONS: Final = _FEW.format("""
    SELECT executions.id, result_bytes FROM sessions JOIN executions ON session_id = sessions.id
    WHERE sessions.state IN ('stopped', 'failed') AND stopped_at < :before LIMIT 100
""")
_SESSIONS: Final = """
DELETE FROM sessions WHERE id IN (
    SELECT id FROM sessions WHERE state IN ('stopped', 'failed') AND stopped_at < :before LIMIT 100
)
"""
_ACCOUNTS: Final = """
DELETE FROM accounts WHERE session_id IN (
    SELECT session_id FROM accounts WHERE sampled_at < :before
    AND session_id NOT IN (SELECT id FROM sessions WHERE state NOT IN ('stopped', 'failed')) LIMIT 5
)
"""


@dataclass(frozen=True, slots=True)
class KeptDays:
    """Days since the end of a session, the end of an execution, and the last second of use; 0: for ever."""

    sessions: int
    results: int
    usage: int


class Retention:
    """Deletes what is past its time."""

    def __init__(self, database: Database, kept: KeptDays, clock: Clock) -> None:
        self._database = database
        self._kept = kept
        self._clock = clock

    async def run(self) -> None:
        """Look now and every hour, until cancelled."""
        while True:
            try:
                await self.sweep()
            except HostError as error:
                # A database that cannot be written tells it in other places, too; later there may be room.
                log.warning("what is past its time could not be deleted", error=str(error))
            await self._clock.sleep(_PAUSE_SECONDS)

    async def sweep(self) -> dict[str, int]:
        """Delete all that is past its time; returns how many rows of each. Raises HostError, DiskFull."""
        deleted = {
            "results": await self._delete(_RESULTS, self._kept.results)
            + await self._delete(_RESULTS_OF_SESSIONS, self._kept.sessions),
            "sessions": await self._delete(_SESSIONS, self._kept.sessions),
            "accounts": await self._delete(_ACCOUNTS, self._kept.usage),
        }
        while await self._database.run(_give_back):
            continue
        if any(deleted.values()):
            log.info("what was past its time is deleted", **deleted)
        return deleted

    async def _delete(self, statement: str, days: int) -> int:
        if days == 0:
            return 0
        before = {"before": self._clock.now() - days * _DAY}
        total = 0
        # Each round is a transaction of its own: whoever waits for the database gets it between two.
        while count := await self._database.run(lambda connection: connection.execute(statement, before).rowcount):
            total += count
        return total


def _give_back(connection: sqlite3.Connection) -> bool:
    """Give some free pages back to the disk; returns whether there are more."""
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free, _FREED_PAGES)):
        # Of more than one the module takes a single step, which is one page.
        connection.execute("PRAGMA incremental_vacuum(1)")
    return free > _FREED_PAGES
