"""The last word on sessions that are over, also when the database has no room for it yet."""

import asyncio
from typing import Final

import structlog

from interpreter.clock import Clock
from interpreter.sessions.supervised import cause_of
from interpreter.store.records import SessionRecord
from interpreter.store.store import Store

log = structlog.get_logger(__name__)

_PAUSE_SECONDS: Final = 5.0
_MAX_KEPT: Final = 10_000


class Unwritten:
    """Writes records that nobody waits for, and keeps those that could not be written until they can.

    One that is killed meanwhile loses no more than the words: the next finds these sessions without machines.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._records: dict[str, SessionRecord] = {}
        self._some = asyncio.Event()

    def get(self, session_id: str) -> SessionRecord | None:
        """A record that the database does not have yet."""
        return self._records.get(session_id)

    async def save(self, record: SessionRecord) -> None:
        """Write a record, now or as soon as that is possible."""
        try:
            await self._store.save(record)
        except Exception as error:
            log.warning("the end of a session could not be written yet", session=record.id, error=cause_of(error))
            self._records[record.id] = record
            if len(self._records) > _MAX_KEPT:
                self._records.pop(next(iter(self._records)))
            self._some.set()

    async def run(self) -> None:
        """Try again and again, until cancelled."""
        while True:
            await self._some.wait()
            await self._clock.sleep(_PAUSE_SECONDS)
            await self.flush()

    async def flush(self) -> None:
        """Try once. Raises what the database raises."""
        for session_id, record in list(self._records.items()):
            await self._store.save(record)
            del self._records[session_id]
        self._some.clear()
