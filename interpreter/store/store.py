"""Sessions and detached executions in the database; every change is one transaction."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from pydantic import ValidationError

from interpreter.store.database import Database
from interpreter.store.paging import AFTER, ORDER, Page
from interpreter.store.records import ExecutionRecord, SessionRecord, State

log = structlog.get_logger(__name__)

OVER: Final = tuple(state for state in State if state.is_over)
_EXECUTION: Final = "id, session_id, context, state, created_at, ended_at"

_TRIM = """
DELETE FROM executions WHERE id IN (
    SELECT id FROM (
        SELECT id, row_number() OVER newest AS place, sum(result_bytes) OVER newest AS bytes
        FROM executions WHERE session_id = ? AND state = 'done'
        WINDOW newest AS (ORDER BY created_at DESC, id DESC)
    ) WHERE place > 1 AND (place > ? OR bytes > ?)
)
"""


@dataclass(frozen=True, slots=True)
class ResultLimits:
    """How many detached executions that have ended are kept of one session, and of how many bytes; always the last."""

    count: int = 1000
    size: int = 100_000_000


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Sessions that are not over, and how many more there are whose records cannot be read."""

    records: list[SessionRecord]
    unreadable: int


class Store:
    """Reads and writes records. One that cannot be read is told in the log, and is as if it were not there."""

    def __init__(self, database: Database, limits: ResultLimits | None = None) -> None:
        self.database = database
        self._limits = limits or ResultLimits()

    async def save(self, record: SessionRecord) -> None:
        """Write a session as it is now; of one that is over the values of its variables are forgotten."""
        # Apart from the rest: lists never read them.
        variables = json.dumps(record.env) if record.env and not record.state.is_over else None
        told = record.model_copy(update={"env": dict.fromkeys(record.env, "")})
        values = (
            *(record.id, record.tenant, record.template, record.state),
            *(record.created_at, record.stopped_at, told.model_dump_json(), variables),
        )

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO sessions (id, tenant, template, state, created_at, stopped_at, record, variables)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
                " stopped_at = excluded.stopped_at, record = excluded.record, variables = excluded.variables",
                values,
            )

        await self.database.run(write)

    async def find(self, session_id: str) -> SessionRecord | None:
        """A session by its id."""

        def read(connection: sqlite3.Connection) -> SessionRecord | None:
            row = connection.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
            return _session(row, row["variables"]) if row else None

        return await self.database.read(read)

    async def page(
        self, page: Page, *, tenant: str | None = None, state: State | None = None, template: str | None = None
    ) -> tuple[list[SessionRecord], str | None]:
        """A page of sessions, newest first, and the cursor of the next one (None: this was the last).

        Their variables have no values here. Raises InvalidRequest.
        """
        wanted = {"tenant": tenant, "state": state, "template": template}
        clauses = [f"{column} = :{column}" for column, value in wanted.items() if value is not None]
        values: dict[str, object] = {column: value for column, value in wanted.items() if value is not None}
        if page.position is not None:
            clauses.append(AFTER)
            values |= dict(zip(("time", "last"), page.position, strict=True))
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""

        def read(connection: sqlite3.Connection) -> tuple[list[SessionRecord], str | None]:
            rows = connection.execute(
                # Only names of columns and of parameters are put into the text.
                f"SELECT id, created_at, record FROM sessions {where} {ORDER} LIMIT {page.limit + 1:d}",  # noqa: S608
                values,
            ).fetchall()
            kept, cursor = page.cut([_Found(row["id"], row["created_at"], row) for row in rows])
            return [record for one in kept if (record := _session(one.row)) is not None], cursor

        return await self.database.read(read)

    async def unfinished(self) -> Unfinished:
        """All sessions that are not over."""

        def read(connection: sqlite3.Connection) -> Unfinished:
            rows = connection.execute("SELECT * FROM sessions WHERE state NOT IN (?, ?)", OVER).fetchall()
            records = [record for row in rows if (record := _session(row, row["variables"])) is not None]
            return Unfinished(records, len(rows) - len(records))

        return await self.database.read(read)

    async def save_execution(self, record: ExecutionRecord) -> None:
        """Write a detached execution as it is now; with its end the oldest go that are past the session's limits."""
        values = (
            *(record.id, record.session_id, record.context, record.state, record.created_at, record.ended_at),
            *(len(record.result or b""), record.result),
        )
        limits = (record.session_id, self._limits.count, self._limits.size)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO executions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            if record.state == "done":
                connection.execute(_TRIM, limits)

        await self.database.run(write)

    async def find_execution(self, session_id: str, execution_id: str) -> ExecutionRecord | None:
        """A detached execution of a session."""

        def read(connection: sqlite3.Connection) -> ExecutionRecord | None:
            row = connection.execute(
                f"SELECT {_EXECUTION}, result FROM executions"  # noqa: S608  (a constant)
                " WHERE id = ? AND session_id = ?",
                (execution_id, session_id),
            ).fetchone()
            return ExecutionRecord(**row) if row else None

        return await self.database.read(read)

    async def list_executions(
        self, session_id: str, page: Page, running: Iterable[ExecutionRecord] = ()
    ) -> tuple[list[ExecutionRecord], str | None]:
        """A page of a session's detached executions without their results, newest first, and the next one's cursor.

        Those that are ``running`` stand among them as they are given. Raises InvalidRequest.
        """
        time, last = page.position or (None, None)
        known = {record.id: record for record in running if page.holds(record)}

        def read(connection: sqlite3.Connection) -> list[ExecutionRecord]:
            rows = connection.execute(
                f"SELECT {_EXECUTION} FROM executions WHERE session_id = :session"  # noqa: S608  (constants)
                f" AND (:last IS NULL OR {AFTER}) {ORDER} LIMIT {page.limit + 1:d}",
                {"session": session_id, "time": time, "last": last},
            )
            return [ExecutionRecord(**row) for row in rows]

        found = {record.id: record for record in await self.database.read(read)} | known
        return page.cut(sorted(found.values(), key=lambda one: (one.created_at, one.id), reverse=True))

    async def lose_executions(self, now: float) -> None:
        """Mark what ran when the service was killed: its outputs are lost."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE executions SET state = 'done', ended_at = ?, result = CAST(json_object('execution_id', id,"
                " 'context_id', context, 'status', 'lost', 'outputs', json_array()) AS BLOB) WHERE state != 'done'",
                (now,),
            )

        await self.database.run(write)


@dataclass(frozen=True, slots=True)
class _Found:
    id: str
    created_at: float
    row: sqlite3.Row


def _session(row: sqlite3.Row, variables: str | None = None) -> SessionRecord | None:
    try:
        record = SessionRecord.model_validate_json(row["record"])
        return record if variables is None else record.model_copy(update={"env": json.loads(variables)})
    except ValueError as error:
        # Never what stands in it: that is a user's.
        faults = error.errors(include_input=False, include_url=False) if isinstance(error, ValidationError) else []
        told = [f"{fault['loc'][0] if fault['loc'] else 'record'}: {fault['type']}" for fault in faults]
        log.warning("the record of a session cannot be read", session=row["id"], faults=told or type(error).__name__)
        return None
