"""The warm pool: machines that are restored and warmed up before anybody asks for them."""

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from interpreter.clock import Clock
from interpreter.engine.engine import Engine
from interpreter.engine.holding import HeldSession, restore
from interpreter.engine.places import Places
from interpreter.errors import InterpreterError
from interpreter.sessions.supervised import Supervisor
from interpreter.templates.store import BuiltTemplate

log = structlog.get_logger(__name__)

_WARM_UP: Final = "None"


@dataclass(eq=False, slots=True)
class _Ready:
    """A machine that nobody took yet, who watches it, and when the template that it is of was built."""

    held: HeldSession
    built: datetime
    watcher: asyncio.Task[None] | None = None


class Pool:
    """Keeps as many machines ready as the configuration says."""

    def __init__(self, engine: Engine, places: Places, clock: Clock, supervisor: Supervisor) -> None:
        self._engine = engine
        self._places = places
        self._clock = clock
        self._supervisor = supervisor
        self._sizes = {template: size for template, size in engine.settings.pool.items() if size}
        self._ready: dict[str, list[_Ready]] = {template: [] for template in engine.settings.pool}
        self._changed = {template: asyncio.Event() for template in self._sizes}
        self._turn = asyncio.Lock()
        self._filling: list[asyncio.Task[None]] = []

    @property
    def ready(self) -> Mapping[str, int]:
        """How many machines are ready, per template."""
        return {name: sum(not one.held.has_ended for one in ready) for name, ready in self._ready.items()}

    def start(self) -> None:
        """Fill the pool, and refill it whenever a machine was taken or has ended, until it is closed."""
        for template in self._sizes:
            self._filling.append(self._supervisor.keep(f"pool of {template}", partial(self._fill, template)))

    def take(self, template: str, built: BuiltTemplate) -> HeldSession | None:
        """A ready machine of that build, which is the caller's from here on; None when there is none."""
        for ready in list(self._ready.get(template, ())):
            if ready.held.has_ended:
                # Its watcher puts it away.
                continue
            self._remove(template, ready)
            if ready.built == built.manifest.created:
                return ready.held
            self._supervisor.run("a machine of an earlier build ends", ready.held.stack.aclose())
        return None

    async def close(self) -> None:
        """End all machines that nobody took."""
        for filling in self._filling:
            await self._supervisor.stop(filling)
        async with AsyncExitStack() as closing:
            for template, ready in self._ready.items():
                for one in list(ready):
                    self._remove(template, one)
                    # All of them, also when one cannot be ended.
                    closing.push_async_callback(one.held.stack.aclose)

    async def _fill(self, template: str) -> None:
        changed = self._changed[template]
        while True:
            changed.clear()
            while len(self._ready[template]) < self._sizes[template]:
                # One at a time: sessions that somebody waits for go before.
                async with self._turn:
                    await self._add(template)
            await changed.wait()

    async def _add(self, template: str) -> None:
        built = await self._engine.find(template)
        held = await restore(self._engine, self._places, template, session_id=uuid.uuid4().hex)
        try:
            # The first cell is the slow one: the guest's code is translated, pages are copied.
            await held.session.execute(_WARM_UP, silent=True, timeout=self._engine.settings.restore_timeout)
        except BaseException:
            await held.stack.aclose()
            raise
        ready = _Ready(held, built.manifest.created)
        self._ready[template].append(ready)
        ready.watcher = self._supervisor.run("a machine of the pool is watched", self._watch(template, ready))

    async def _watch(self, template: str, ready: _Ready) -> None:
        """Give a machine signs of life, without which it would end itself; put it away when it does not answer."""
        why = await self._wait_ended(ready.held)
        log.warning("a machine of the pool ended", template=template, error=str(why))
        # From here on nobody cancels this task.
        ready.watcher = None
        self._remove(template, ready)
        await ready.held.stack.aclose()

    async def _wait_ended(self, held: HeldSession) -> InterpreterError:
        settings = self._engine.settings
        while True:
            pause = asyncio.ensure_future(self._clock.sleep(settings.health_interval))
            try:
                await asyncio.wait({held.ending.error, pause}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                pause.cancel()
            if held.has_ended:
                return held.ending.error.result()
            try:
                await held.session.ping(timeout=settings.health_timeout)
            except InterpreterError as error:
                return error

    def _remove(self, template: str, ready: _Ready) -> None:
        self._ready[template].remove(ready)
        self._changed[template].set()
        if ready.watcher is not None:
            ready.watcher.cancel()
