"""The sessions of the service: created, found, extended, watched, ended, and taken back after a kill."""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from interpreter.accounting.ledger import Ledger
from interpreter.accounting.meter import Meter
from interpreter.clock import Clock
from interpreter.engine.engine import Engine
from interpreter.engine.places import Place, Places
from interpreter.engine.session import Session
from interpreter.errors import (
    Conflict,
    HostError,
    InterpreterError,
    InvalidRequest,
    KernelDied,
    MachineDied,
    NotFound,
)
from interpreter.kernel.channels import MAIN
from interpreter.sessions.admission import Admission
from interpreter.sessions.disks import Disks
from interpreter.sessions.guard import GUARD_SECONDS, Guard
from interpreter.sessions.live import LiveSession
from interpreter.sessions.pool import Ending, HeldSession, Pool, restore
from interpreter.sessions.rebuilding import rebuild_outdated
from interpreter.sessions.resources import MIB, Resource, available_memory
from interpreter.sessions.supervised import Supervisor
from interpreter.settings import Settings
from interpreter.store.paging import Page
from interpreter.store.records import Front, NetworkMode, NewSession, Reason, SessionRecord, State, TimeoutMode
from interpreter.store.retention import KeptDays, Retention
from interpreter.store.store import Store
from interpreter.vm.takeover import FoundMachine, end_machine, find_machine

log = structlog.get_logger(__name__)

_ID_BYTES: Final = 16


class Sessions:
    """All sessions of one service. Made by `open_sessions`."""

    def __init__(self, settings: Settings, engine: Engine, store: Store, ledger: Ledger, clock: Clock) -> None:
        self.settings = settings
        self.engine = engine
        self.store = store
        self.ledger = ledger
        self.places = Places(settings.machines_home)
        self.pool = Pool(engine, self.places, clock, settings.pool)
        self.disks = Disks(settings.home)
        self._clock = clock
        self._live: dict[str, LiveSession] = {}
        resources = self._resources()
        self.admission = Admission(settings, os.cpu_count() or 1, resources, lambda: self._live)
        self._guard = Guard(resources, self.disks, settings.disk_limit_mb * MIB, self._fail)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> list[LiveSession]:
        """All that run."""
        return list(self._live.values())

    def live_session(self, session_id: str) -> LiveSession | None:
        """A session that runs, whoever's it is; None when it does not."""
        return self._live.get(session_id)

    async def create(self, tenant: str, wanted: NewSession, front: Front = Front.REST) -> SessionRecord:
        """Start a session, from the pool when it has one ready.

        Raises TemplateNotFound, InvalidRequest, TenantLimit, HostFull, Draining, and what a restore raises.
        """
        template = wanted.template or self.settings.default_template
        definition = (await self.engine.find(template)).manifest.definition
        _check(wanted, definition.cpus, definition.memory_mb, template)
        async with self.admission.ticket(tenant, definition.cpus) as ticket:
            now = self._clock.now()
            record = SessionRecord(
                id=secrets.token_hex(_ID_BYTES),
                tenant=tenant,
                template=template,
                name=wanted.name,
                state=State.PENDING,
                created_at=now,
                last_used_at=now,
                used_elapsed=self._clock.elapsed(),
                timeout_seconds=wanted.timeout_seconds or self.settings.default_timeout,
                timeout_mode=wanted.timeout_mode,
                network_mode=wanted.network_mode,
                cpus=definition.cpus,
                memory_mb=definition.memory_mb,
                env=wanted.env,
                metadata=wanted.metadata,
                contexts=[MAIN],
                front=front,
            )
            if front is Front.JUPYTER:
                # As Jupyter's other gateways have it: code in the kernel knows its own name.
                record = record.model_copy(update={"env": {**record.env, "KERNEL_ID": record.kernel_id}})
            await self.store.save(record)
            try:
                held = await self._machine(record)
            except BaseException as error:
                told = str(error) if isinstance(error, InterpreterError) else "it was given up while it started"
                ended = {
                    "state": State.FAILED,
                    "reason": Reason.CRASH,
                    "message": told,
                    "stopped_at": self._clock.now(),
                }
                await asyncio.shield(self.store.save(record.model_copy(update=ended)))
                raise
            live = LiveSession(record, held, ticket, self.store, self.settings, self._clock)
            try:
                return await asyncio.shield(self._begin(live))
            except HostError:
                # Without room for the database there is no session.
                self._live.pop(record.id, None)
                await held.stack.aclose()
                raise

    async def find(self, tenant: str, session_id: str) -> SessionRecord:
        """A session of a tenant, also one that is over. Raises NotFound."""
        live = self._live.get(session_id)
        record = live.record if live else await self.store.find(session_id)
        if record is None or record.tenant != tenant:
            raise NotFound(f"there is no session {session_id[:64]!r}", hint="List your sessions")
        return record

    async def page(
        self, tenant: str, page: Page, *, state: State | None = None, template: str | None = None
    ) -> tuple[list[SessionRecord], str | None]:
        """A page of a tenant's sessions, newest first, and the cursor of the next."""
        records, cursor = await self.store.page(page, tenant=tenant, state=state, template=template)
        # A living session's last use is newer in memory.
        return [live.record if (live := self._live.get(one.id)) else one for one in records], cursor

    async def running(self, tenant: str, session_id: str) -> LiveSession:
        """A session that runs. Raises NotFound, Conflict."""
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
        live = self._live.get(session_id)
        if live is None or live.record.tenant != tenant:
            return await self.find(tenant, session_id)
        await self._end(live, State.STOPPED, Reason.USER)
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
            await live.change(contexts=list(session.kernels))

    async def take_back(self) -> None:
        """Take over the machines that an earlier service has left, clean up what is dead or belongs to nobody."""
        places = {place.name: place for place in self.places.all()}
        machines = {name: machine for name, place in places.items() if (machine := find_machine(place.folder))}
        unfinished = await self.store.unfinished()
        wanted = {record.machine: record for record in unfinished if record.state is State.RUNNING}
        for name, place in places.items():
            if name not in wanted or name not in machines:
                log.info("what a machine of nobody has left is removed", machine=name)
                await end_machine(place.folder)
                self.places.remove(place)
        await asyncio.gather(*(self._take_back(record, places, machines) for record in unfinished))
        await self.store.lose_executions(self._clock.now())

    async def drain(self) -> None:
        """Refuse new sessions, give what runs some time, then end all sessions."""
        self.admission.drain()
        running = [execution.done for live in self.live for execution in live.executions.all()]
        running += [live.clients.idle for live in self.live if not live.clients.idle.is_set()]
        if running:
            waiting = [asyncio.ensure_future(event.wait()) for event in running]
            _, late = await asyncio.wait(waiting, timeout=self.settings.drain_seconds)
            for waiter in late:
                waiter.cancel()
        await asyncio.gather(*(self._end(live, State.STOPPED, Reason.SHUTDOWN) for live in self.live))

    async def guard(self) -> None:
        """Look every second at what sessions take of the host, and end one before all of them suffer."""
        while True:
            await self._clock.sleep(GUARD_SECONDS)
            self.admission.look_again()
            await self._guard.look(self.live)

    async def _machine(self, record: SessionRecord) -> HeldSession:
        held = self.pool.take(record.template)
        if held is None:
            return await restore(self.engine, self.places, record.template, session_id=record.id, env=record.env)
        held.session.id = record.id
        if record.env:
            try:
                await held.session.set_environment(record.env)
            except BaseException:
                await held.stack.aclose()
                raise
        return held

    async def _begin(self, live: LiveSession) -> SessionRecord:
        now, elapsed = self._clock.now(), self._clock.elapsed()
        self._live[live.record.id] = live
        await live.change(
            state=State.RUNNING,
            started_at=now,
            started_elapsed=elapsed,
            last_used_at=now,
            used_elapsed=elapsed,
            machine=live.held.place.name,
        )
        await self.ledger.open_account(live.record.id, _meter(live.session))
        self._watch(live)
        return live.record

    async def _take_back(
        self, record: SessionRecord, places: dict[str, Place], machines: dict[str, FoundMachine]
    ) -> None:
        place, machine = places.get(record.machine), machines.get(record.machine)
        try:
            if record.state is not State.RUNNING or place is None or machine is None:
                raise MachineDied("the machine was gone when the service came back")
            async with AsyncExitStack() as stack:
                stack.callback(self.places.remove, place)
                ending = Ending()
                session = await stack.enter_async_context(
                    self.engine.take_over(
                        record.id, record.template, machine=machine, environment=record.env, on_end=ending
                    )
                )
                for context in record.contexts:
                    if context != MAIN:
                        await session.join_context(context)
                held = HeldSession(session, place, stack.pop_all(), ending)
        except InterpreterError as error:
            log.warning("session lost", session=record.id, error=str(error))
            stopping = record.state is State.STOPPING
            ended = record.model_copy(
                update={
                    "state": State.STOPPED if stopping else State.FAILED,
                    "reason": record.reason or Reason.CRASH,
                    "message": None if stopping else str(error),
                    "stopped_at": self._clock.now(),
                }
            )
            await self.store.save(ended)
            return
        ticket = self.admission.take(record.tenant, record.cpus)
        live = self._live[record.id] = LiveSession(record, held, ticket, self.store, self.settings, self._clock)
        await self.ledger.resume_account(record.id, _meter(session))
        self._watch(live)
        log.info("session taken back", session=record.id)

    def _watch(self, live: LiveSession) -> None:
        task = asyncio.create_task(self._watch_until_end(live))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch_until_end(self, live: LiveSession) -> None:
        expired = asyncio.create_task(live.wait_expired())
        unhealthy = asyncio.create_task(
            live.wait_unhealthy(self.settings.health_interval, self.settings.health_timeout)
        )
        ended = asyncio.create_task(live.ended.wait())
        broken = asyncio.ensure_future(asyncio.shield(live.held.ending.error))
        shut_down = asyncio.create_task(live.clients.shut_down.wait())
        waiting = (expired, unhealthy, ended, broken, shut_down)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if broken.done() and not broken.cancelled():
            reason, message = await live.cause_of_end(broken.result())
            await self._end(live, State.FAILED, reason, message)
        elif unhealthy.done() and not unhealthy.cancelled():
            await self._end(live, State.FAILED, Reason.CRASH, str(unhealthy.result()))
        elif expired.done() and not expired.cancelled():
            await self._end(live, State.STOPPED, Reason.TIMEOUT)
        elif shut_down.done() and not shut_down.cancelled():
            await self._end(live, State.STOPPED, Reason.USER)

    async def _end(self, live: LiveSession, state: State, reason: Reason, message: str | None = None) -> None:
        """End a session, once, whoever asks first; returns when it is over."""
        if live.ending is None:
            live.ending = asyncio.create_task(self._ending(live, state, reason, message))
        await asyncio.shield(live.ending)

    async def _ending(self, live: LiveSession, state: State, reason: Reason, message: str | None) -> None:
        session_id = live.record.id
        try:
            await live.change(state=State.STOPPING, reason=reason, message=message)
            await live.clients.close(_farewell(live.record))
            await live.executions.close(KernelDied(f"the session ended ({reason})"))
            await live.commands.close()
            await self.ledger.close_account(session_id)
        except HostError as error:
            # Without room for the database the machine must end all the same.
            log.warning("the end of a session could not be written", session=session_id, error=str(error))
        finally:
            await live.held.stack.aclose()
            self.admission.give_back(live.ticket)
            self._live.pop(session_id, None)
            try:
                await live.change(state=state, stopped_at=self._clock.now())
            finally:
                live.ended.set()
                log.info("session ended", session=session_id, state=state, reason=reason)

    async def _fail(self, live: LiveSession, reason: Reason, message: str) -> None:
        await self._end(live, State.FAILED, reason, message)

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
    """The sessions of a service, with those of an earlier one taken back; all end when the block is left."""
    ledger = Ledger(store.database, clock)
    sessions = Sessions(settings, engine, store, ledger, clock)
    await sessions.take_back()
    kept = KeptDays(settings.keep_sessions_days, settings.keep_results_days, settings.keep_usage_days)
    supervisor.keep("retention", Retention(store.database, kept, clock).run)
    supervisor.keep("ledger", ledger.run)
    supervisor.keep("guard", sessions.guard)
    filling = supervisor.keep("pool", sessions.pool.run)
    if settings.renew_templates:
        supervisor.keep("renewal of templates", lambda: rebuild_outdated(engine))
    try:
        yield sessions
    finally:
        await sessions.drain()
        await supervisor.stop(filling)
        await sessions.pool.close()


def _meter(session: Session) -> Meter:
    return Meter(session.machine_pid, session.device_pid, session.device_before_ns)


def _farewell(record: SessionRecord) -> str:
    """Why a session ends, for those who are connected to its kernel. At most 100 characters."""
    match record.reason:
        case Reason.TIMEOUT if record.timeout_mode is TimeoutMode.IDLE:
            return f"culled: the kernel was not used for {record.timeout_seconds} s"
        case Reason.TIMEOUT:
            return f"the session's {record.timeout_seconds} s were over"
        case Reason.USER:
            return "the kernel was shut down"
        case Reason.SHUTDOWN:
            return "the service is being stopped"
        case _:
            return (record.message or "the session ended")[:100]


def _check(wanted: NewSession, cpus: int, memory_mb: int, template: str) -> None:
    if wanted.network_mode is not NetworkMode.SANDBOX:
        raise InvalidRequest("network mode PUBLIC is not there yet", hint="Use SANDBOX")
    # A snapshot has its size: what is restored from it cannot have another one.
    for name, asked, has in (("cpus", wanted.cpus, cpus), ("memory_mb", wanted.memory_mb, memory_mb)):
        if asked is not None and asked != has:
            raise InvalidRequest(
                f"{name} is {asked}, but sessions of {template} have {has}",
                hint="Leave it out, or build a template of that size",
            )
