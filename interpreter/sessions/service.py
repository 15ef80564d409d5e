"""The sessions of the service: created, found, extended, watched, ended, and taken back after a kill."""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog

from interpreter.accounting.ledger import Ledger
from interpreter.clock import Clock
from interpreter.engine.engine import Engine
from interpreter.engine.places import Places
from interpreter.errors import Conflict, Draining, NotFound
from interpreter.kernel.channels import MAIN
from interpreter.sessions.admission import Admission
from interpreter.sessions.disks import Disks
from interpreter.sessions.ending import Ender
from interpreter.sessions.guard import GUARD_SECONDS, Guard
from interpreter.sessions.live import End, LiveSession
from interpreter.sessions.pool import Pool
from interpreter.sessions.rebuilding import rebuild_outdated
from interpreter.sessions.resources import MIB, Resource, available_memory
from interpreter.sessions.starting import Starter
from interpreter.sessions.supervised import Supervisor, is_cancelled
from interpreter.sessions.takeback import TakeBack
from interpreter.sessions.unwritten import Unwritten
from interpreter.settings import Settings
from interpreter.store.paging import Page
from interpreter.store.records import Front, NewSession, Reason, SessionRecord, State
from interpreter.store.retention import KeptDays, Retention
from interpreter.store.store import Store

log = structlog.get_logger(__name__)


class Sessions:
    """All sessions of one service. Made by `open_sessions`."""

    def __init__(
        self, settings: Settings, engine: Engine, store: Store, ledger: Ledger, clock: Clock, supervisor: Supervisor
    ) -> None:
        self.settings = settings
        self.store = store
        self.ledger = ledger
        self.disks = Disks(settings.home)
        self.clock = clock
        self._supervisor = supervisor
        self._live: dict[str, LiveSession] = {}
        self._starting: set[asyncio.Task[LiveSession]] = set()
        resources = self._resources()
        self.admission = Admission(settings, os.cpu_count() or 1, resources, lambda: self._live)
        self._guard = Guard(resources, self.disks, settings.disk_limit_mb * MIB, self._fail)
        places = Places(settings.machines_home)
        self.pool = Pool(engine, places, clock, supervisor)
        self._unwritten = unwritten = Unwritten(store, clock)
        self._starter = Starter(*(settings, engine, places, self.pool, self.admission, store, unwritten, ledger, clock))
        self._ender = Ender(self.admission, unwritten, ledger, clock)
        self._taking_back = TakeBack(
            *(settings, engine, places, self.admission, store, unwritten, ledger, clock, supervisor), adopt=self._adopt
        )

    @property
    def live(self) -> list[LiveSession]:
        """All that run."""
        return list(self._live.values())

    def live_session(self, session_id: str) -> LiveSession | None:
        """A session that runs, whoever's it is; None when it does not."""
        return self._live.get(session_id)

    @property
    def awaited(self) -> list[SessionRecord]:
        """Those of an earlier service that run, and that this one has not taken back yet."""
        return self._taking_back.awaited

    async def create(self, tenant: str, wanted: NewSession, front: Front = Front.REST) -> SessionRecord:
        """Start a session, from the pool when it has one ready.

        Raises TemplateNotFound, InvalidRequest, TenantLimit, HostFull, Draining, HostError, DiskFull, and what a
        restore raises.
        """
        # A task of its own: who gives up cancels it once, and does not disturb how it is undone.
        starting = self._supervisor.run("a session starts", self._start(tenant, wanted, front))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return (await asyncio.shield(starting)).record
        except asyncio.CancelledError:
            if starting.cancelled() and not is_cancelled():
                raise Draining("the service is being stopped") from None
            starting.cancel()
            self._supervisor.run("a session that nobody wants ends", self._unwanted(starting))
            raise

    async def find(self, tenant: str, session_id: str) -> SessionRecord:
        """A session of a tenant, also one that is over. Raises NotFound."""
        live = self._live.get(session_id)
        record = live.record if live else self._unwritten.get(session_id) or await self.store.find(session_id)
        if record is None or record.tenant != tenant:
            raise NotFound(f"there is no session {session_id[:64]!r}", hint="List your sessions")
        return record

    async def page(
        self, tenant: str, page: Page, *, state: State | None = None, template: str | None = None
    ) -> tuple[list[SessionRecord], str | None]:
        """A page of a tenant's sessions, newest first, and the cursor of the next."""
        records, cursor = await self.store.page(page, tenant=tenant, state=state, template=template)
        # What is in memory is newer: a living session's last use, an end that could not be written yet.
        return [self._newest(one) for one in records], cursor

    async def running(self, tenant: str, session_id: str) -> LiveSession:
        """A session that runs; one that is being taken back is waited for. Raises NotFound, Conflict, NotReady."""
        if (awaited := self._taking_back.get(session_id)) and awaited.tenant == tenant:
            await self._taking_back.wait(session_id)
        live = self._live.get(session_id)
        if live is None or live.record.tenant != tenant:
            record = await self.find(tenant, session_id)
            why = f" ({record.reason})" if record.reason else ""
            raise Conflict(f"the session is {record.state}{why}", hint="Start another one")
        live.check()
        return live

    def check_accepting(self) -> None:
        """Raises Draining when no new work is taken any more."""
        self.admission.check_accepting()

    async def extend(self, tenant: str, session_id: str, timeout_seconds: int) -> SessionRecord:
        """Give a session a new timeout, counted as its mode says. Raises NotFound, Conflict."""
        live = await self.running(tenant, session_id)
        await live.change(timeout_seconds=timeout_seconds)
        return live.record

    async def stop(self, tenant: str, session_id: str) -> SessionRecord:
        """End a session at once; one that is over stays as it is. Raises NotFound."""
        end = End(State.STOPPED, Reason.USER)
        if (awaited := self._taking_back.get(session_id)) and awaited.tenant == tenant:
            await self._taking_back.give_up(session_id, end)
        live = self._live.get(session_id)
        if live is None or live.record.tenant != tenant:
            return await self.find(tenant, session_id)
        await self._end(live, end)
        return live.record

    async def open_context(self, live: LiveSession, name: str) -> None:
        """Start one more kernel in a session. Raises Conflict, GuestRefused."""
        with live.use() as session:
            if name in session.kernels:
                raise Conflict(f"the session has a context {name!r} already")
            await session.open_context(name)
            await live.change(contexts=list(session.kernels))

    async def close_context(self, live: LiveSession, name: str) -> None:
        """End a kernel. Raises NotFound, Conflict."""
        live.executions.kernel(name)
        if name == MAIN:
            raise Conflict("the main context cannot be closed", hint="Restart it, or stop the session")
        with live.use() as session:
            await session.close_context(name)
            live.executions.forget_context(name)
            await live.change(contexts=list(session.kernels))

    async def open(self) -> None:
        """Find what an earlier service has left, and start the work in the background. Raises HostError, DiskFull."""
        await self._taking_back.begin()
        self._supervisor.keep("ledger", self.ledger.run)
        self._supervisor.keep("guard", self.guard)
        self._supervisor.keep("records of ended sessions", self._unwritten.run)
        self.pool.start()

    async def drain(self) -> None:
        """Refuse new sessions, give what runs some time, then end all sessions."""
        self.admission.drain()
        end = End(State.STOPPED, Reason.SHUTDOWN)
        for record in self.awaited:
            await self._taking_back.give_up(record.id, end)
        quiet = [asyncio.create_task(live.wait_quiet()) for live in self.live]
        if under_way := {*quiet, *self._starting}:
            _, late = await asyncio.wait(under_way, timeout=self.settings.drain_seconds)
            for task in late:
                task.cancel()
            await asyncio.wait(under_way)
        await asyncio.gather(*(self._end(live, end) for live in self.live))

    async def close(self) -> None:
        """End everything. What cannot be written any more is known to the next service."""
        async with AsyncExitStack() as closing:
            closing.push_async_callback(self._unwritten.flush)
            closing.push_async_callback(self.pool.close)
            closing.push_async_callback(self.drain)

    async def guard(self) -> None:
        """Look every second at what sessions take of the host, and end one before all of them suffer."""
        while True:
            await self.clock.sleep(GUARD_SECONDS)
            self.admission.look_again()
            await self._guard.look(self.live)

    async def _start(self, tenant: str, wanted: NewSession, front: Front) -> LiveSession:
        live = await self._starter.start(tenant, wanted, front)
        self._adopt(live)
        return live

    async def _unwanted(self, starting: asyncio.Task[LiveSession]) -> None:
        await asyncio.wait({starting})
        if not starting.cancelled() and starting.exception() is None:
            await self._end(starting.result(), End(State.STOPPED, Reason.USER))

    def _adopt(self, live: LiveSession) -> None:
        self._live[live.record.id] = live
        self._supervisor.keep(f"session {live.record.id}", lambda: self._watch(live), for_all=False)

    async def _watch(self, live: LiveSession) -> None:
        if (end := await live.wait_end()) is not None:
            await self._end(live, end)

    async def _end(self, live: LiveSession, end: End) -> None:
        """End a session, once, whoever asks first; returns when it is over."""
        if live.ending is None:
            live.ending = self._supervisor.run("a session ends", self._finish(live, end))
        await asyncio.shield(live.ending)

    async def _finish(self, live: LiveSession, end: End) -> None:
        try:
            await self._ender.end(live, end)
        finally:
            self._live.pop(live.record.id, None)
            live.ended.set()

    def _newest(self, record: SessionRecord) -> SessionRecord:
        live = self._live.get(record.id)
        return live.record if live else self._unwritten.get(record.id) or record

    async def _fail(self, live: LiveSession, reason: Reason, message: str) -> None:
        await self._end(live, End(State.FAILED, reason, message))

    def _resources(self) -> tuple[Resource, ...]:
        settings = self.settings
        return (
            Resource(
                name="memory",
                available=available_memory,
                held=self._memory_of,
                each=settings.session_memory_mb * MIB,
                reserve=settings.memory_reserve_mb * MIB,
                reason=Reason.OUT_OF_MEMORY,
            ),
            Resource(
                name="disk",
                available=self.disks.available,
                held=self.disks.held,
                each=settings.session_disk_mb * MIB,
                reserve=settings.disk_reserve_mb * MIB,
                reason=Reason.OUT_OF_DISK,
            ),
        )

    def _memory_of(self, session_id: str) -> int:
        live = self._live.get(session_id)
        return self.ledger.memory_of(session_id) + (live.held_bytes if live else 0)


@asynccontextmanager
async def open_sessions(
    settings: Settings, engine: Engine, store: Store, clock: Clock, supervisor: Supervisor
) -> AsyncGenerator[Sessions]:
    """The sessions of a service; those of an earlier one are taken back meanwhile. All end when the block is left."""
    sessions = Sessions(settings, engine, store, Ledger(store.database, clock), clock, supervisor)
    await sessions.open()
    kept = KeptDays(settings.keep_sessions_days, settings.keep_results_days, settings.keep_usage_days)
    supervisor.keep("retention", Retention(store.database, kept, clock).run)
    if settings.renew_templates:
        supervisor.keep("renewal of templates", lambda: rebuild_outdated(engine))
    try:
        yield sessions
    finally:
        await sessions.close()
