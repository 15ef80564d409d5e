"""The forms that the database had and has: each step from one to the next is a script, kept for good.

A new file goes through all of them, so that there is one way to the newest form. SQLite's ``user_version`` tells which
form a file has. Before a file with something in it is changed, a copy of it is kept beside it.
"""

import os
import sqlite3
from pathlib import Path
from typing import Final

import structlog

from interpreter.errors import HostError

log = structlog.get_logger(__name__)

_FIRST: Final = """
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, template TEXT NOT NULL, state TEXT NOT NULL,
    created_at REAL NOT NULL, stopped_at REAL, record TEXT NOT NULL,
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
"""

_SECOND: Final = """
-- The values of a session's variables, as JSON; none when it has none or is over. `record` has their names.
ALTER TABLE sessions ADD COLUMN variables TEXT;
UPDATE sessions SET
    variables = CASE WHEN state NOT IN ('stopped', 'failed') THEN nullif(record -> '$.env', '{}') END,
    record = json_set(record, '$.env', (SELECT json_group_object(key, '') FROM json_each(record, '$.env')))
    WHERE json_valid(record) AND json_type(record, '$.env') = 'object';
CREATE INDEX sessions_by_end ON sessions (stopped_at);

-- The ledger's own: it outlives the session. The counters of the machine are those of `sampled_at` (seconds since
-- 1970): what comes after is new.
CREATE TABLE accounts (
    session_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, template TEXT NOT NULL,
    cpu_ns INTEGER NOT NULL, sampled_at INTEGER NOT NULL
) STRICT;
CREATE INDEX accounts_by_time ON accounts (sampled_at);
INSERT INTO accounts SELECT id, tenant, template, cpu_ns, coalesce(sampled_at, CAST(created_at AS INTEGER))
    FROM sessions WHERE sampled_at IS NOT NULL OR id IN (SELECT session_id FROM usage);
ALTER TABLE sessions DROP COLUMN cpu_ns;
ALTER TABLE sessions DROP COLUMN sampled_at;

-- One row for each second of a living session, one for each minute of one that is over. `seconds` tells how many
-- seconds a row stands for.
ALTER TABLE usage RENAME TO old_usage;
CREATE TABLE usage (
    session_id TEXT NOT NULL REFERENCES accounts (session_id) ON DELETE CASCADE, second INTEGER NOT NULL,
    seconds INTEGER NOT NULL, cpu_ns INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL, memory_byte_seconds INTEGER NOT NULL,
    -- With the least that a second is billed for, whatever was used.
    billed_byte_seconds INTEGER NOT NULL,
    PRIMARY KEY (session_id, second)
) STRICT, WITHOUT ROWID;
INSERT INTO usage SELECT * FROM old_usage;
DROP TABLE old_usage;

-- The result (JSON) is the last column: whatever is before it is read without it.
ALTER TABLE executions RENAME TO old_executions;
DROP INDEX executions_by_session;
CREATE TABLE executions (
    id TEXT PRIMARY KEY, session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    context TEXT NOT NULL, state TEXT NOT NULL, created_at REAL NOT NULL, ended_at REAL,
    result_bytes INTEGER NOT NULL DEFAULT 0, result BLOB
) STRICT;
-- A record that cannot be read is left behind; the copy has it.
INSERT INTO executions
    SELECT id, session_id, record ->> '$.context', record ->> '$.state', created_at, record ->> '$.ended_at',
        coalesce(length(CAST(nullif(record -> '$.result', 'null') AS BLOB)), 0),
        CAST(nullif(record -> '$.result', 'null') AS BLOB)
    FROM old_executions
    WHERE json_valid(record) AND record ->> '$.context' IS NOT NULL AND record ->> '$.state' IS NOT NULL;
DROP TABLE old_executions;
CREATE INDEX executions_by_session ON executions (session_id, created_at DESC, id DESC);
CREATE INDEX executions_by_end ON executions (ended_at);
CREATE INDEX executions_not_done ON executions (session_id) WHERE state != 'done';
"""


_THIRD: Final = """
-- As `sampled_at`, in seconds since the host was started: what has passed since does not depend on the clock.
ALTER TABLE accounts ADD COLUMN sampled_elapsed REAL;
"""

_STEPS: Final = (_FIRST, _SECOND, _THIRD)
_INCREMENTAL: Final = 2


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the database in ``path`` to the newest form, in one transaction. Blocks.

    Raises HostError when a newer version of the service has written it or the copy cannot be kept, sqlite3.Error.
    """
    newest = len(_STEPS)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == newest:
        return
    if version > newest:
        raise HostError(
            f"{path} was written by a newer version of the service (form {version}, this one knows {newest})",
            hint=f"Upgrade the service, or put the copy from before its upgrade in the place: {copy_of(path, newest)}",
        )
    if version:
        log.warning("the database gets a new form", path=str(path), form=version, new_form=newest)
        _keep_copy(connection, path, version)
    # Tables are replaced: rows that belong to others would go with the old ones.
    connection.execute("PRAGMA foreign_keys = OFF")
    try:
        steps = "\n".join(_STEPS[version:])
        connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {newest}; COMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    _allow_shrinking(connection)


def copy_of(path: Path, version: int) -> Path:
    """Where the copy of a database lies that had form ``version``."""
    return path.with_name(f"{path.name}.form-{version}")


def _keep_copy(connection: sqlite3.Connection, path: Path, version: int) -> None:
    copy = copy_of(path, version)
    try:
        # SQLite writes into a file that is there when it is empty; so it is nobody else's to read from the first byte.
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise HostError(f"{copy} cannot be written: {error.strerror}") from None
    connection.execute("VACUUM INTO ?", (str(copy),))


def _allow_shrinking(connection: sqlite3.Connection) -> None:
    (kind,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    if kind == _INCREMENTAL:
        return
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
    except sqlite3.Error as error:
        # It takes as much room again as the file has; without it only what is deleted is not given back to the disk.
        log.warning("the database's file could not be rewritten, and will not shrink", error=str(error))
