"""What was used and what it costs: totals, series, and sums by tenant, template or day."""

import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ConfigDict

from interpreter.store.database import Database

_SUMS: Final = (
    "sum(usage.seconds) AS seconds, sum(usage.cpu_ns) AS cpu_ns, max(usage.memory_bytes) AS peak,"
    " sum(usage.memory_byte_seconds) AS held,"
    " sum(usage.billed_byte_seconds) AS billed"
)


class GroupBy(StrEnum):
    """What a sum is over."""

    TENANT = "tenant"
    TEMPLATE = "template"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices, in whatever currency."""

    cpu_hour: float
    gb_hour: float


class Usage(BaseModel):
    """What was used. ``cost`` is at the rates of now, with a second and 128 MB per second as the least."""

    model_config = ConfigDict(frozen=True)

    seconds: int
    cpu_seconds: float
    memory_gb_seconds: float
    memory_peak_bytes: int
    cost: float


class UsagePoint(BaseModel):
    """The ``seconds`` seconds up to and with ``second`` (since 1970); a minute that begins there once compacted."""

    model_config = ConfigDict(frozen=True)

    second: int
    seconds: int
    cpu_seconds: float
    memory_bytes: int


class UsageGroup(Usage):
    """A sum over the sessions of one tenant, template or day (UTC)."""

    group: str
    sessions: int


class UsageReader:
    """Reads the ledger."""

    def __init__(self, database: Database, rates: Rates) -> None:
        self._database = database
        self._rates = rates

    async def total(self, session_id: str) -> Usage:
        """All that a session has used."""

        def read(connection: sqlite3.Connection) -> Usage:
            row = connection.execute(
                f"SELECT {_SUMS} FROM usage WHERE session_id = :id",  # noqa: S608  (a constant)
                {"id": session_id},
            ).fetchone()
            return Usage.model_validate(self._figures(row))

        return await self._database.read(read)

    async def series(self, session_id: str, start: int, end: int) -> list[UsagePoint]:
        """What a session used from second ``start`` to before second ``end``; at most 30,000 rows."""

        def read(connection: sqlite3.Connection) -> list[UsagePoint]:
            rows = connection.execute(
                "SELECT * FROM usage WHERE session_id = ? AND second >= ? AND second < ? ORDER BY second LIMIT 30000",
                (session_id, start, end),
            )
            return [
                UsagePoint(
                    second=row["second"],
                    seconds=row["seconds"],
                    cpu_seconds=row["cpu_ns"] / 1e9,
                    memory_bytes=row["memory_bytes"],
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def groups(self, start: float, end: float, group_by: GroupBy, tenant: str | None) -> list[UsageGroup]:
        """Sums over all sessions (of one tenant) from ``start`` to before ``end``, seconds since 1970."""
        column = {
            GroupBy.TENANT: "accounts.tenant",
            GroupBy.TEMPLATE: "accounts.template",
            GroupBy.DAY: "date(second, 'unixepoch')",
        }[group_by]

        def read(connection: sqlite3.Connection) -> list[UsageGroup]:
            rows = connection.execute(
                f"SELECT {column} AS label, count(DISTINCT session_id) AS sessions, {_SUMS}"  # noqa: S608  (constants)
                # What was last read before the time has no row in it.
                " FROM accounts JOIN usage USING (session_id) WHERE sampled_at >= :start - 60"
                " AND second >= :start AND second < :end"
                " AND (:tenant IS NULL OR accounts.tenant = :tenant) GROUP BY label ORDER BY label",
                {"start": start, "end": end, "tenant": tenant},
            )
            return [
                UsageGroup.model_validate({"group": row["label"], "sessions": row["sessions"], **self._figures(row)})
                for row in rows
            ]

        return await self._database.read(read)

    def _figures(self, row: sqlite3.Row) -> dict[str, object]:
        seconds = row["seconds"] or 0
        cpu, billed = (row["cpu_ns"] or 0) / 1e9, (row["billed"] or 0) / 1e9
        cost = cpu * self._rates.cpu_hour / 3600 + billed * self._rates.gb_hour / 3600
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "memory_gb_seconds": (row["held"] or 0) / 1e9,
            "memory_peak_bytes": row["peak"] or 0,
            "cost": round(cost, 9),
        }
