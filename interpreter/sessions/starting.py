"""How a session starts: steps that are undone when a later one fails, or when nobody wants the session any more."""

import errno
import secrets
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Final

from interpreter.accounting.ledger import Ledger
from interpreter.clock import Clock
from interpreter.engine.engine import Engine
from interpreter.engine.holding import HeldSession, restore
from interpreter.engine.places import Places
from interpreter.errors import DiskFull, HostError, InterpreterError, InvalidRequest
from interpreter.kernel.channels import MAIN
from interpreter.sessions.admission import Admission
from interpreter.sessions.live import LiveSession
from interpreter.sessions.pool import Pool
from interpreter.sessions.unwritten import Unwritten
from interpreter.settings import Settings
from interpreter.store.records import Front, NetworkMode, NewSession, Reason, SessionRecord, State
from interpreter.store.store import Store
from interpreter.templates.store import BuiltTemplate

_ID_BYTES: Final = 16


class Starter:
    """Starts sessions."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        places: Places,
        pool: Pool,
        admission: Admission,
        store: Store,
        unwritten: Unwritten,
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._places = places
        self._pool = pool
        self._admission = admission
        self._store = store
        self._unwritten = unwritten
        self._ledger = ledger
        self._clock = clock

    async def start(self, tenant: str, wanted: NewSession, front: Front) -> LiveSession:
        """Start a session, from the pool when it has one ready.

        When it fails or is cancelled nothing is left of it but a record that says why. Raises TemplateNotFound,
        InvalidRequest, TenantLimit, HostFull, Draining, HostError, DiskFull, and what a restore raises.
        """
        template = wanted.template or self._settings.default_template
        try:
            built = await self._engine.find(template)
            _check(wanted, built, template)
            async with self._admission.ticket(tenant, built.manifest.definition.cpus) as ticket:
                record = self._new_record(tenant, wanted, front, template, built)
                async with AsyncExitStack() as undo:
                    undo.push_async_exit(partial(self._fail, record))
                    await self._store.save(record)
                    held = await self._machine(record, built)
                    undo.push_async_callback(held.stack.aclose)
                    live = LiveSession(record, held, ticket, self._store, self._settings, self._clock)
                    await live.begin()
                    await self._ledger.open_account(record.id, live.meter)
                    undo.pop_all()
                return live
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise (DiskFull if full else HostError)(
                f"the session could not be started: {error.strerror or type(error).__name__}",
                hint="Free some disk" if full else "See what this host is short of",
            ) from error

    async def _machine(self, record: SessionRecord, built: BuiltTemplate) -> HeldSession:
        held = self._pool.take(record.template, built)
        if held is None:
            return await restore(self._engine, self._places, record.template, session_id=record.id, env=record.env)
        held.session.id = record.id
        if record.env:
            try:
                await held.session.set_environment(record.env)
            except BaseException:
                await held.stack.aclose()
                raise
        return held

    async def _fail(
        self,
        record: SessionRecord,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if isinstance(error, InterpreterError):
            told = str(error)
        elif isinstance(error, Exception):
            told = "the service could not start it; its log tells why"
        else:
            told = "it was given up while it started"
        ended = {"state": State.FAILED, "reason": Reason.CRASH, "message": told, "stopped_at": self._clock.now()}
        await self._unwritten.save(record.model_copy(update=ended))

    def _new_record(
        self, tenant: str, wanted: NewSession, front: Front, template: str, built: BuiltTemplate
    ) -> SessionRecord:
        now, definition = self._clock.now(), built.manifest.definition
        record = SessionRecord(
            id=secrets.token_hex(_ID_BYTES),
            tenant=tenant,
            template=template,
            name=wanted.name,
            state=State.PENDING,
            created_at=now,
            last_used_at=now,
            used_elapsed=self._clock.elapsed(),
            timeout_seconds=wanted.timeout_seconds or self._settings.default_timeout,
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
        return record


def _check(wanted: NewSession, built: BuiltTemplate, template: str) -> None:
    if wanted.network_mode is not NetworkMode.SANDBOX:
        raise InvalidRequest("network mode PUBLIC is not there yet", hint="Use SANDBOX")
    definition = built.manifest.definition
    # A snapshot has its size: what is restored from it cannot have another one.
    sizes = (("cpus", wanted.cpus, definition.cpus), ("memory_mb", wanted.memory_mb, definition.memory_mb))
    for name, asked, has in sizes:
        if asked is not None and asked != has:
            raise InvalidRequest(
                f"{name} is {asked}, but sessions of {template} have {has}",
                hint="Leave it out, or build a template of that size",
            )
