"""A session that is held: with all that must be closed for it to end, and who is told when it ends by itself."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass

from interpreter.engine.engine import Engine
from interpreter.engine.places import Place, Places
from interpreter.engine.session import Session
from interpreter.errors import InterpreterError


class Ending:
    """Why a machine ended by itself, for whoever owns it by then."""

    def __init__(self) -> None:
        self.error: asyncio.Future[InterpreterError] = asyncio.get_running_loop().create_future()

    def __call__(self, error: InterpreterError) -> None:
        """The machine ended."""
        if not self.error.done():
            self.error.set_result(error)


@dataclass(slots=True)
class HeldSession:
    """A session whose machine outlives this service when that is killed. Closing ``stack`` ends it."""

    session: Session
    place: Place
    stack: AsyncExitStack
    ending: Ending

    @property
    def has_ended(self) -> bool:
        """Whether its machine has ended by itself."""
        return self.ending.error.done()


async def restore(
    engine: Engine, places: Places, template: str, *, session_id: str | None = None, env: dict[str, str] | None = None
) -> HeldSession:
    """Restore a session and hold it. Raises what `Engine.session` raises."""
    async with AsyncExitStack() as stack:
        place = stack.enter_context(places.new())
        ending = Ending()
        restored = engine.session(template, environment=env, session_id=session_id, place=place, on_end=ending)
        session = await stack.enter_async_context(restored)
        return HeldSession(session, place, stack.pop_all(), ending)
