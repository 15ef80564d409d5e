"""Sessions that an earlier service has left: their machines are taken back beside the service's other work.

An error of a machine costs its session. One of the service's own (no descriptors, no disk, a fault in it) costs none:
the machine goes on, and is tried again until it ends itself, since it hears of no service.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import structlog

from interpreter.accounting.ledger import Ledger
from interpreter.clock import Clock
from interpreter.deadline import deadline
from interpreter.engine.engine import Engine
from interpreter.engine.holding import Ending, HeldSession
from interpreter.engine.places import Place, Places
from interpreter.errors import HostError, MachineDied, NotReady
from interpreter.kernel.channels import MAIN
from interpreter.sessions.admission import Admission, Ticket
from interpreter.sessions.live import End, LiveSession
from interpreter.sessions.supervised import FIRST_PAUSE, LONGEST_PAUSE, Supervisor, cause_of, is_cancelled
from interpreter.sessions.unwritten import Unwritten
from interpreter.settings import Settings
from interpreter.store.records import Reason, SessionRecord, State
from interpreter.store.store import Store
from interpreter.vm.takeover import MACHINES_OWN, FoundMachine, end_machine, find_machine

log = structlog.get_logger(__name__)

_AT_ONCE: Final = 8
"""Machines that are taken back at the same time: each takes processors, of which new sessions want some too."""
_RETRY_SECONDS: Final = 5


@dataclass(slots=True)
class _Awaited:
    """A session whose machine runs and was not taken back yet."""

    record: SessionRecord
    place: Place
    machine: FoundMachine
    ticket: Ticket
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class TakeBack:
    """Takes sessions back; ``adopt`` gets each."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        places: Places,
        admission: Admission,
        store: Store,
        unwritten: Unwritten,
        ledger: Ledger,
        clock: Clock,
        supervisor: Supervisor,
        adopt: Callable[[LiveSession], None],
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._places = places
        self._admission = admission
        self._store = store
        self._unwritten = unwritten
        self._ledger = ledger
        self._clock = clock
        self._supervisor = supervisor
        self._adopt = adopt
        self._awaited: dict[str, _Awaited] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    @property
    def awaited(self) -> list[SessionRecord]:
        """Sessions that are still to be taken back."""
        return [awaited.record for awaited in self._awaited.values()]

    def get(self, session_id: str) -> SessionRecord | None:
        """A session that is still to be taken back."""
        awaited = self._awaited.get(session_id)
        return awaited.record if awaited else None

    async def wait(self, session_id: str) -> None:
        """Wait until a session is taken back, or lost. Raises NotReady when that takes too long."""
        if (awaited := self._awaited.get(session_id)) is None:
            return
        try:
            async with deadline(self._settings.queue_seconds):
                await awaited.settled.wait()
        except TimeoutError:
            raise NotReady(
                "the service was restarted, and the session is being taken back", retry_after=_RETRY_SECONDS
            ) from None

    async def begin(self) -> None:
        """Find out what is there, put away what is dead or belongs to nobody, and start taking back the rest.

        Raises HostError, DiskFull.
        """
        try:
            places = {place.name: place for place in self._places.all()}
            machines = {name: found for name, place in places.items() if (found := find_machine(place.folder))}
        except OSError as error:
            raise HostError(f"machines cannot be looked for: {error.strerror}") from error
        unfinished = await self._store.unfinished()
        wanted = {record.machine for record in unfinished.records if record.state is State.RUNNING}
        for name, place in places.items():
            # What cannot be read may be the record of just this one, which ends itself in time.
            spared = name in machines and unfinished.unreadable
            if name not in machines or (name not in wanted and not spared):
                log.info("what a machine of nobody has left is removed", machine=name)
                await end_machine(place.folder)
                self._places.remove(place)
        for record in unfinished.records:
            place, machine = places.get(record.machine), machines.get(record.machine)
            if record.state is State.RUNNING and place is not None and machine is not None:
                self._await(_Awaited(record, place, machine, self._admission.take(record.tenant, record.cpus)))
            else:
                await self._write_lost(record, MachineDied("the machine was gone when the service came back"))
        now = self._clock.now()
        try:
            await self._store.lose_executions(now)
        except HostError as error:
            log.warning("executions of an earlier service cannot be written yet", error=str(error))
            self._supervisor.keep("executions of an earlier service", lambda: self._store.lose_executions(now))

    async def give_up(self, session_id: str, end: End) -> None:
        """End a session that is still to be taken back."""
        awaited = self._awaited.get(session_id)
        if awaited is None or awaited.task is None:
            return
        await self._supervisor.stop(awaited.task)
        # Unless it was taken back, or lost, at this moment.
        if self._awaited.get(session_id) is awaited:
            ended = {"state": end.state, "reason": end.reason, "message": end.message}
            await self._let_go(awaited, awaited.record.model_copy(update=ended))

    def _await(self, awaited: _Awaited) -> None:
        self._awaited[awaited.record.id] = awaited
        awaited.task = self._supervisor.run("a session is taken back", self._take_back(awaited))

    async def _take_back(self, awaited: _Awaited) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._turns:
                    live = await self._try(awaited)
            except asyncio.CancelledError as error:
                if is_cancelled():
                    raise
                failure: BaseException = error
            except MACHINES_OWN as error:
                log.warning("session lost", session=awaited.record.id, error=str(error))
                await self._lose(awaited, error)
                return
            except Exception as error:
                failure = error
            else:
                self._settle(awaited)
                self._adopt(live)
                log.info("session taken back", session=awaited.record.id)
                return
            log.warning(
                "a session could not be taken back yet; its machine goes on",
                session=awaited.record.id,
                error=cause_of(failure),
                again_in=pause,
            )
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _try(self, awaited: _Awaited) -> LiveSession:
        record, place = awaited.record, awaited.place
        async with AsyncExitStack() as stack:

            def put_away(_: object, error: BaseException | None, __: TracebackType | None) -> None:
                # With an error the machine may go on, and be found by its place.
                if error is None:
                    self._places.remove(place)

            stack.push(put_away)
            ending = Ending()
            taking = self._engine.take_over(
                record.id, record.template, machine=awaited.machine, environment=record.env, on_end=ending
            )
            session = await stack.enter_async_context(taking)
            for context in record.contexts:
                if context != MAIN:
                    await session.join_context(context)
            held = HeldSession(session, place, stack, ending)
            live = LiveSession(record, held, awaited.ticket, self._store, self._settings, self._clock)
            await self._ledger.resume_account(record.id, live.meter)
            held.stack = stack.pop_all()
            return live

    async def _lose(self, awaited: _Awaited, error: Exception) -> None:
        await self._let_go(awaited, _lost(awaited.record, error))

    async def _let_go(self, awaited: _Awaited, ended: SessionRecord) -> None:
        await end_machine(awaited.place.folder)
        self._places.remove(awaited.place)
        self._admission.give_back(awaited.ticket)
        await self._unwritten.save(ended.model_copy(update={"stopped_at": self._clock.now()}))
        self._settle(awaited)

    async def _write_lost(self, record: SessionRecord, error: Exception) -> None:
        log.warning("session lost", session=record.id, error=str(error))
        await self._unwritten.save(_lost(record, error).model_copy(update={"stopped_at": self._clock.now()}))

    def _settle(self, awaited: _Awaited) -> None:
        del self._awaited[awaited.record.id]
        awaited.settled.set()


def _lost(record: SessionRecord, error: Exception) -> SessionRecord:
    stopping = record.state is State.STOPPING
    return record.model_copy(
        update={
            "state": State.STOPPED if stopping else State.FAILED,
            "reason": record.reason or Reason.CRASH,
            "message": None if stopping else str(error),
        }
    )
