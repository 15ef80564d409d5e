"""A session while it lives: its record, its machine, what runs in it, and when it was last used."""

import asyncio
import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from interpreter.accounting.meter import Meter
from interpreter.clock import Clock
from interpreter.engine.holding import HeldSession
from interpreter.engine.session import Session
from interpreter.errors import Conflict, HostError, InterpreterError
from interpreter.gateway.clients import KernelClients
from interpreter.sessions.admission import Ticket
from interpreter.sessions.commands import Commands
from interpreter.sessions.executions import Executions
from interpreter.sessions.resources import MIB
from interpreter.settings import Settings
from interpreter.store.records import Front, Reason, SessionRecord, State, TimeoutMode
from interpreter.store.store import Store

_WORDS_SECONDS: Final = 2.0
_KILLED: Final = frozenset({"exit status 137", "exit status -9"})


@dataclass(frozen=True, slots=True)
class End:
    """How a session ends, and why."""

    state: State
    reason: Reason
    message: str | None = None


class LiveSession:
    """One session that runs. Made, and ended, by `Sessions`."""

    def __init__(
        self, record: SessionRecord, held: HeldSession, ticket: Ticket, store: Store, settings: Settings, clock: Clock
    ) -> None:
        self.record = record
        self.held = held
        self.ticket = ticket
        self.session: Session = held.session
        self.session.memory.set_limit(settings.session_buffer_mb * MIB)
        self.executions = Executions(held.session, store, settings, clock)
        self.commands = Commands(held.session, record.env, settings, clock)
        self.clients = KernelClients(
            *(held.session.main, held.session.vsock.connect, clock),
            limit=settings.client_limit,
            restarts=record.front is Front.JUPYTER,
            memory=held.session.memory,
            on_use=self.touch,
        )
        self.ended = asyncio.Event()
        """Set when all of it is over and written down."""
        self.ending: asyncio.Task[None] | None = None
        self._store = store
        self._settings = settings
        self._clock = clock
        self._users = 0
        self._transfers = 0
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._changed = asyncio.Event()

    @property
    def meter(self) -> Meter:
        """What reads the counters of its processes."""
        return Meter(self.session.machine_pid, self.session.device_pid, self.session.device_before_ns)

    @property
    def held_bytes(self) -> int:
        """Memory that the service itself holds for it."""
        waiting = sum(kernel.connection.held for kernel in self.session.kernels.values())
        return self.session.memory.held + waiting

    @property
    def is_used(self) -> bool:
        """Whether somebody uses it at this moment: a cell runs, a file is on its way, a front end is connected."""
        if self._users > 0 or self.executions.busy or self.commands.busy:
            return True
        busy = self.clients.state == "busy" and not self._settings.cull_busy
        return busy or (self.clients.connections > 0 and not self._settings.cull_connected)

    async def begin(self) -> None:
        """It runs from now on. Raises HostError, DiskFull."""
        now, elapsed = self._clock.now(), self._clock.elapsed()
        await self.change(
            state=State.RUNNING,
            started_at=now,
            started_elapsed=elapsed,
            last_used_at=now,
            used_elapsed=elapsed,
            machine=self.held.place.name,
        )

    async def change(self, **fields: object) -> None:
        """Change the record, in memory and in the database."""
        self.record = self.record.model_copy(update=fields)
        await self._store.save(self.record)
        self._changed.set()

    def touch(self) -> None:
        """It was used now. Written down with the next change, or after the next health check."""
        used = {"last_used_at": self._clock.now(), "used_elapsed": self._clock.elapsed()}
        self.record = self.record.model_copy(update=used)

    @contextlib.contextmanager
    def use(self, *, lasting: bool = False) -> Generator[Session]:
        """Use it: its idle time begins anew when the block is left. Raises Conflict when it is over.

        What is ``lasting`` goes on for as long as a client likes, and is not waited for when the service is stopped.
        """
        self.check()
        self._users += 1
        self._transfers += not lasting
        if self._transfers:
            self._at_rest.clear()
        self.touch()
        try:
            yield self.session
        finally:
            self._users -= 1
            self._transfers -= not lasting
            if not self._transfers:
                self._at_rest.set()
            self.touch()

    async def wait_quiet(self) -> None:
        """Return when all that somebody waits for has ended: executions, commands, transfers, notebooks."""
        while under_way := [event for event in self._rests() if not event.is_set()]:
            await under_way[0].wait()

    def _rests(self) -> list[asyncio.Event]:
        return [
            *(execution.done for execution in self.executions.all()),
            *(command.done for command in self.commands.all() if not command.request.background),
            self.clients.idle,
            self._at_rest,
        ]

    def check(self) -> None:
        """Raises Conflict when it does not run any more."""
        if self.record.state is not State.RUNNING:
            raise Conflict(f"the session is {self.record.state}", hint="Start another one")

    async def wait_end(self) -> End | None:
        """Return why it ends by itself, when it does; None when somebody else has ended it."""
        interval, patience = self._settings.health_interval, self._settings.health_timeout
        expired = asyncio.create_task(self._wait_expired())
        unhealthy = asyncio.create_task(self._wait_unhealthy(interval, patience))
        ended = asyncio.create_task(self.ended.wait())
        broken = asyncio.ensure_future(asyncio.shield(self.held.ending.error))
        shut_down = asyncio.create_task(self.clients.shut_down.wait())
        waiting = (expired, unhealthy, ended, broken, shut_down)
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        if not broken.cancelled():
            reason, message = await self._cause_of_end(broken.result())
            return End(State.FAILED, reason, message)
        if not unhealthy.cancelled():
            return End(State.FAILED, Reason.CRASH, str(unhealthy.result()))
        if not expired.cancelled():
            expired.result()
            return End(State.STOPPED, Reason.TIMEOUT)
        if not shut_down.cancelled():
            return End(State.STOPPED, Reason.USER)
        return None

    async def _wait_expired(self) -> None:
        while True:
            if self.is_used and self.record.timeout_mode is TimeoutMode.IDLE:
                self.touch()
            if (left := self._left()) <= 0:
                return
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            slept = asyncio.ensure_future(self._clock.sleep(left))
            try:
                await asyncio.wait({changed, slept}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                slept.cancel()

    def _left(self) -> float:
        return self.record.expires_elapsed(self._clock) - self._clock.elapsed()

    async def _wait_unhealthy(self, interval: float, timeout: float) -> InterpreterError:
        """Ask the guest for a sign of life every ``interval`` seconds; returns why there was none."""
        saved = self.record.last_used_at
        while True:
            await self._clock.sleep(interval)
            try:
                await self.session.ping(timeout=timeout)
            except InterpreterError as error:
                return error
            if self.record.last_used_at != saved:
                saved = self.record.last_used_at
                # Without room in the database the session is no less well; the next change writes it.
                with contextlib.suppress(HostError):
                    await self._store.save(self.record)

    async def _cause_of_end(self, error: InterpreterError) -> tuple[Reason, str]:
        """Why it ended by itself, and in words. ``error`` is what was noticed first: the machine may know better."""
        words = await self.session.machine_words(timeout=_WORDS_SECONDS)
        if words is None:
            return Reason.CRASH, str(error)
        # Nobody but the host's out-of-memory killer sends SIGKILL to a machine that was not told to end.
        if words in _KILLED:
            return Reason.OUT_OF_MEMORY, "the machine was killed; most likely the host ran out of memory"
        return Reason.CRASH, f"the machine ended: {words}"
