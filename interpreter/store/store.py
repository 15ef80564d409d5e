"""Sessions and detached executions in the database; every change is one transaction."""

import json
import sqlite3
from dataclasses import dataclass

from interpreter.errors import InvalidRequest
from interpreter.store.database import Database
from interpreter.store.records import ExecutionRecord, SessionRecord, State


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is asked for. ``after`` is the cursor that the page before ended with."""

    limit: int = 50
    after: str | None = None


class Store:
    """Reads and writes records."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def save(self, record: SessionRecord) -> None:
        """Write a session as it is now."""
        values = (
            *(record.id, record.tenant, record.template, record.state),
            *(record.created_at, record.stopped_at, record.model_dump_json()),
        )

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO sessions (id, tenant, template, state, created_at, stopped_at, record)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " state = excluded.state, stopped_at = excluded.stopped_at, record = excluded.record",
                values,
            )

        await self.database.run(write)

    async def find(self, session_id: str) -> SessionRecord | None:
        """A session by its id."""

        def read(connection: sqlite3.Connection) -> SessionRecord | None:
            row = connection.execute("SELECT record FROM sessions WHERE id = ?", (session_id,)).fetchone()
            return SessionRecord.model_validate_json(row["record"]) if row else None

        return await self.database.run(read)

    async def page(
        self, page: Page, *, tenant: str | None = None, state: State | None = None, template: str | None = None
    ) -> tuple[list[SessionRecord], str | None]:
        """A page of sessions, newest first, and the cursor of the next one (None: this was the last)."""
        wanted = {"tenant": tenant, "state": state, "template": template}
        clauses = [f"{column} = :{column}" for column, value in wanted.items() if value is not None]
        values: dict[str, object] = {column: value for column, value in wanted.items() if value is not None}
        if page.after is not None:
            clauses.append("(created_at, id) < (:time, :last)")
            values |= _cursor(page.after)
        where = f"WHERE {' AND '.join(clauses)}" if clauses else ""

        def read(connection: sqlite3.Connection) -> list[SessionRecord]:
            rows = connection.execute(
                # Only names of columns and of parameters are put into the text.
                f"SELECT record FROM sessions {where} ORDER BY created_at DESC, id DESC LIMIT {page.limit + 1:d}",  # noqa: S608
                values,
            )
            return [SessionRecord.model_validate_json(row["record"]) for row in rows]

        records = await self.database.run(read)
        more = len(records) > page.limit
        records = records[: page.limit]
        return records, f"{records[-1].created_at!r}_{records[-1].id}" if more else None

    async def unfinished(self) -> list[SessionRecord]:
        """All sessions that are not over."""

        def read(connection: sqlite3.Connection) -> list[SessionRecord]:
            over = [state for state in State if state.is_over]
            rows = connection.execute("SELECT record FROM sessions WHERE state NOT IN (?, ?)", over)
            return [SessionRecord.model_validate_json(row["record"]) for row in rows]

        return await self.database.run(read)

    async def save_execution(self, record: ExecutionRecord) -> None:
        """Write a detached execution as it is now."""
        values = (record.id, record.session_id, record.created_at, record.model_dump_json())

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO executions VALUES (?, ?, ?, ?)", values)

        await self.database.run(write)

    async def find_execution(self, session_id: str, execution_id: str) -> ExecutionRecord | None:
        """A detached execution of a session."""

        def read(connection: sqlite3.Connection) -> ExecutionRecord | None:
            row = connection.execute(
                "SELECT record FROM executions WHERE id = ? AND session_id = ?", (execution_id, session_id)
            ).fetchone()
            return ExecutionRecord.model_validate_json(row["record"]) if row else None

        return await self.database.run(read)

    async def list_executions(self, session_id: str) -> list[ExecutionRecord]:
        """The detached executions of a session, newest first, without their results."""

        def read(connection: sqlite3.Connection) -> list[ExecutionRecord]:
            rows = connection.execute(
                "SELECT json_remove(record, '$.result') AS record FROM executions WHERE session_id = ?"
                " ORDER BY created_at DESC LIMIT 1000",
                (session_id,),
            )
            return [ExecutionRecord.model_validate(json.loads(row["record"])) for row in rows]

        return await self.database.run(read)

    async def lose_executions(self, now: float) -> None:
        """Mark what ran when the service was killed: its outputs are lost."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE executions SET record = json_set(record, '$.state', 'done', '$.ended_at', ?, '$.result',"
                " json_object('execution_id', id, 'context_id', json_extract(record, '$.context'), 'status', 'lost',"
                " 'outputs', json_array())) WHERE json_extract(record, '$.state') != 'done'",
                (now,),
            )

        await self.database.run(write)


def _cursor(text: str) -> dict[str, object]:
    time, _, last = text.partition("_")
    try:
        return {"time": float(time), "last": last}
    except ValueError:
        raise InvalidRequest("this is no cursor", hint="Take `next` of the page before") from None
