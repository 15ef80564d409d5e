"""The warm pool: machines that are restored and warmed up before anybody asks for them."""

import asyncio
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import structlog

from interpreter.clock import Clock
from interpreter.engine.engine import Engine
from interpreter.engine.places import Place, Places
from interpreter.engine.session import Session
from interpreter.errors import InterpreterError

log = structlog.get_logger(__name__)

_WARM_UP: Final = "None"
_RETRY_SECONDS: Final = 5.0


@dataclass(slots=True)
class HeldSession:
    """A restored session with all that must be closed for it to end, and who is told when it ends by itself."""

    session: Session
    place: Place
    stack: AsyncExitStack
    ending: "Ending"


class Ending:
    """Why a machine ended by itself, for whoever owns it by then."""

    def __init__(self) -> None:
        self.error: asyncio.Future[InterpreterError] = asyncio.get_running_loop().create_future()

    def __call__(self, error: InterpreterError) -> None:
        """The machine ended."""
        if not self.error.done():
            self.error.set_result(error)


async def restore(
    engine: Engine, places: Places, template: str, *, session_id: str | None = None, env: dict[str, str] | None = None
) -> HeldSession:
    """Restore a session that outlives this service when that is killed. Raises what `Engine.session` raises."""
    async with AsyncExitStack() as stack:
        place = stack.enter_context(places.new())
        ending = Ending()
        restored = engine.session(template, environment=env, session_id=session_id, place=place, on_end=ending)
        session = await stack.enter_async_context(restored)
        return HeldSession(session, place, stack.pop_all(), ending)


class Pool:
    """Keeps as many machines ready as the configuration says."""

    def __init__(self, engine: Engine, places: Places, clock: Clock, sizes: Mapping[str, int]) -> None:
        self._engine = engine
        self._places = places
        self._clock = clock
        self._sizes = dict(sizes)
        self._ready: dict[str, list[HeldSession]] = {template: [] for template in sizes}
        self._taken = asyncio.Event()

    @property
    def ready(self) -> Mapping[str, int]:
        """How many machines are ready, per template."""
        return {template: len(held) for template, held in self._ready.items()}

    def take(self, template: str) -> HeldSession | None:
        """A ready machine, which is the caller's from here on; None when there is none."""
        held = self._ready.get(template)
        while held:
            taken = held.pop(0)
            self._taken.set()
            if not taken.ending.error.done():
                return taken
            asyncio.ensure_future(taken.stack.aclose())  # noqa: RUF006  (nothing waits for a machine that has died)
        return None

    async def run(self) -> None:
        """Fill the pool, and refill it when a machine was taken, until cancelled."""
        while True:
            missing = [name for name, size in self._sizes.items() if len(self._ready[name]) < size]
            if not missing:
                self._taken.clear()
                await self._taken.wait()
                continue
            # One at a time: sessions that somebody waits for go before.
            for template in missing:
                try:
                    await self._add(template)
                except InterpreterError as error:
                    log.warning("the pool cannot be filled", template=template, error=str(error))
                    await self._clock.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        """End all machines that nobody took."""
        for held in self._ready.values():
            while held:
                await held.pop().stack.aclose()

    async def _add(self, template: str) -> None:
        held = await restore(self._engine, self._places, template, session_id=uuid.uuid4().hex)
        try:
            # The first cell is the slow one: the guest's code is translated, pages are copied.
            await held.session.execute(_WARM_UP, silent=True, timeout=self._engine.settings.restore_timeout)
        except BaseException:
            await held.stack.aclose()
            raise
        self._ready[template].append(held)
