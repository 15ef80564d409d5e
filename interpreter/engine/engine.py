"""The engine: loaded templates and the sessions that are restored from them, in this process."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Self

import structlog

from interpreter.device.fork import DeviceParent
from interpreter.engine.places import Place
from interpreter.engine.renewal import Renewal
from interpreter.engine.restore import Listeners, RestoredGuest, restore_guest, take_over_guest
from interpreter.engine.session import Session
from interpreter.errors import InterpreterError, SessionEnded, TemplateError
from interpreter.kernel.control import AgentEvent
from interpreter.kernel.versions import check_spoken
from interpreter.private import private_home
from interpreter.settings import Settings, load_settings
from interpreter.templates.loaded import LoadedTemplate, load_template
from interpreter.templates.rootfs import Progress
from interpreter.templates.store import BuiltTemplate, TemplateStore
from interpreter.vm.accelerator import AcceleratorAnswer, choose_accelerator
from interpreter.vm.system_calls import open_device_filter
from interpreter.vm.takeover import FoundMachine

log = structlog.get_logger(__name__)

DEFAULT_TEMPLATE = "python-data"

_ORPHANED_SECONDS = 1800.0
"""How long a machine at least waits for its service to come back."""

OnEnd = Callable[[InterpreterError], None]


class Engine:
    """Restores sessions. An async context manager; leaving it ends all of its sessions.

    ``async with Engine() as engine, engine.session(template="base") as session: ...``
    """

    def __init__(self, settings: Settings | None = None, *, progress: Progress | None = None) -> None:
        self.settings = settings or load_settings()
        self._progress = progress or _log_progress
        self._templates: dict[_Build, _Loading] = {}
        self._accelerator: AcceleratorAnswer | None = None
        self._devices = DeviceParent(open_device_filter)

    async def __aenter__(self) -> Self:
        private_home(self.settings.home)
        self._accelerator = await choose_accelerator(self.settings)
        await self._devices.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as closing:
            closing.push_async_exit(self._devices)
            for loading in list(self._templates.values()):
                closing.push_async_callback(loading.stack.aclose)
                loading.task.cancel()
                await asyncio.wait({loading.task})

    @property
    def accelerator(self) -> AcceleratorAnswer:
        """What machines run on here, and why."""
        if self._accelerator is None:
            raise RuntimeError("the engine is used before `async with`")
        return self._accelerator

    async def find(self, template: str) -> BuiltTemplate:
        """A built template that sessions can be restored from, not loaded.

        Raises TemplateNotFound, TemplateOutdated, SnapshotDamaged.
        """
        built = await asyncio.to_thread(TemplateStore(self.settings.templates_home).find, template)
        check_spoken(built.manifest.agent_version, built.manifest.name)
        return built

    async def load(self, template: str) -> LoadedTemplate:
        """Check a built template and load its memory, once; sessions of it then start in a fraction of a second.

        What a name stands for is looked up each time; a build is loaded once, whatever it was asked for by. A load that
        failed is tried anew the next time. Raises TemplateNotFound, SnapshotDamaged, DiskFull.
        """
        return await asyncio.shield(self._loading(await self.find(template)).task)

    @asynccontextmanager
    async def session(
        self,
        template: str = DEFAULT_TEMPLATE,
        *,
        environment: dict[str, str] | None = None,
        session_id: str | None = None,
        place: Place | None = None,
        key: bytes | None = None,
        on_end: OnEnd | None = None,
    ) -> AsyncGenerator[Session]:
        """Restore a session and hold it until the block is left.

        With a ``place`` its machine outlives this process when that is killed, and can be taken over. ``key`` signs
        its kernels' messages: a new one when not given, none when empty. ``on_end`` is told why the machine ended by
        itself. Raises TemplateNotFound, SnapshotDamaged, MachineStartFailed,
        GuestUnresponsive, DiskFull.
        """
        session_id = session_id or str(uuid.uuid4())
        # Health checks are calls: a guest that hears none of many has no service any more.
        orphaned_after = None if place is None else max(self.settings.health_interval * 10, _ORPHANED_SECONDS)
        renewal = Renewal(f"session-{session_id[:8]}", environment or {}, orphaned_after=orphaned_after)
        if key is not None:
            renewal = replace(renewal, key=key)
        events = _Events(on_end)
        async with self._use(template) as loaded:
            guest = restore_guest(self.settings, loaded, self._devices, renewal, events.listeners, place)
            async with self._hold(session_id, template, guest, renewal, events) as session:
                yield session

    @asynccontextmanager
    async def take_over(
        self,
        session_id: str,
        template: str,
        *,
        machine: FoundMachine,
        environment: dict[str, str],
        on_end: OnEnd | None = None,
    ) -> AsyncGenerator[Session]:
        """Take over a session whose service was killed, by its machine; else as `session`.

        Raises MachineDied, GuestUnresponsive.
        """
        orphaned_after = max(self.settings.health_interval * 10, _ORPHANED_SECONDS)
        renewal = Renewal(f"session-{session_id[:8]}", environment, orphaned_after=orphaned_after)
        events = _Events(on_end)
        guest = take_over_guest(self.settings, machine, self._devices, renewal, events.listeners)
        async with self._hold(session_id, template, guest, renewal, events) as session:
            yield session

    @asynccontextmanager
    async def _hold(
        self,
        session_id: str,
        template: str,
        restoring: AbstractAsyncContextManager[RestoredGuest],
        renewal: Renewal,
        events: "_Events",
    ) -> AsyncGenerator[Session]:
        async with restoring as guest:
            session = events.session = Session(session_id, template, guest, renewal)
            log.info("session started", session=session_id, template=template, **guest.timings.marks)
            try:
                yield session
            finally:
                # From here on the machine's end is no news.
                events.session = None
                session.end(SessionEnded("the session was closed"))
                await session.close()
        log.info("session stopped", session=session_id)

    @asynccontextmanager
    async def _use(self, template: str) -> AsyncGenerator[LoadedTemplate]:
        loading = self._loading(await self.find(template))
        loading.users += 1
        try:
            yield await asyncio.shield(loading.task)
        finally:
            loading.users -= 1

    def _loading(self, built: BuiltTemplate) -> "_Loading":
        key = _Build(built.manifest.content_hash, built.manifest.created)
        if key not in self._templates:
            stack = AsyncExitStack()
            task = asyncio.create_task(self._load(built, stack))
            task.add_done_callback(lambda done: self._forget_failed(key, done))
            self._templates[key] = _Loading(task, stack)
        return self._templates[key]

    def _forget_failed(self, key: "_Build", task: asyncio.Task[LoadedTemplate]) -> None:
        # Whatever it was; who waits for it is told, also when nobody does any more.
        if task.cancelled() or task.exception() is not None:
            self._templates.pop(key, None)

    async def _load(self, built: BuiltTemplate, stack: AsyncExitStack) -> LoadedTemplate:
        name = built.manifest.content_hash
        context = load_template(self.settings, name, self.accelerator.accelerator, self._progress)
        loaded = await stack.enter_async_context(context)
        await self._let_go()
        return loaded

    async def _let_go(self) -> None:
        """Unload the builds that another one has replaced and that no session was restored from."""
        for key, loading in list(self._templates.items()):
            if loading.users or not loading.task.done():
                continue
            try:
                replaced = (await self.find(key.content_hash)).manifest.created != key.created
            except TemplateError:
                replaced = True
            except OSError:
                continue
            # Looked at again: meanwhile one may have begun.
            if replaced and not loading.users and self._templates.pop(key, None):
                log.info("template let go", hash=key.content_hash[:12])
                await loading.stack.aclose()


@dataclass(frozen=True, slots=True)
class _Build:
    """Which build was loaded: the same content may have been built anew."""

    content_hash: str
    created: datetime


@dataclass(slots=True)
class _Loading:
    """A build that is loaded or being loaded, and how many sessions that were restored from it live."""

    task: asyncio.Task[LoadedTemplate]
    stack: AsyncExitStack
    users: int = 0


class _Events:
    """Passes on what comes from a guest, once there is a session to pass it to and as long as there is."""

    def __init__(self, on_end: OnEnd | None) -> None:
        self.session: Session | None = None
        self._on_end = on_end
        self.listeners = Listeners(self._event, self._end)

    def _event(self, event: AgentEvent) -> None:
        if self.session is not None:
            self.session.on_agent_event(event)

    def _end(self, error: InterpreterError) -> None:
        if self.session is None:
            return
        self.session.end(error)
        if self._on_end is not None:
            self._on_end(error)


def _log_progress(text: str) -> None:
    log.warning("template", progress=text)
