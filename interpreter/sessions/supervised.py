"""Who owns the work in the background: restarts what fails, says why, and knows what is down.

Nothing is started without an owner. Work that goes on for as long as the service does is kept: an error that it did not
expect ends only this run of it. Work that ends by itself is run once, and its error is written.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import structlog

from interpreter.clock import Clock
from interpreter.errors import InterpreterError

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
_MAX_CAUSE: Final = 200

T = TypeVar("T")


class Supervisor:
    """Owns tasks; an async context manager, whose end cancels those that still run and waits for them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: set[asyncio.Task[Any]] = set()
        self._down: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What ends may start something to do so.
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    @property
    def down(self) -> Mapping[str, str]:
        """What does not work at the moment, by its name, and why."""
        return self._down

    def keep(self, name: str, work: Callable[[], Awaitable[None]], *, for_all: bool = True) -> asyncio.Task[None]:
        """Do work until the task is cancelled, or it returns by itself.

        When it raises it is begun anew, after a pause that doubles each time. It counts as down from then until it has
        run for as long as that pause, unless it is not ``for_all`` but for one session.
        """
        return self._own(self._keep(name, work, for_all), name)

    def run(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do work once. Its error is logged, and raised by the task for whoever waits for it."""
        return self._own(work, name)

    async def stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task of this owner's and wait until it has ended."""
        task.cancel()
        await asyncio.wait({task})

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]], for_all: bool) -> None:
        pause = FIRST_PAUSE
        try:
            while True:
                recovering = self._own(self._recovered(name, pause), f"{name}: recovering")
                failure: BaseException | None = None
                try:
                    await work()
                except asyncio.CancelledError as error:
                    if is_cancelled():
                        raise
                    # Not this work was cancelled but something that it waited for.
                    failure = error
                except Exception as error:
                    failure = error
                finally:
                    recovered = recovering.done()
                    recovering.cancel()
                if failure is None:
                    return
                pause = FIRST_PAUSE if recovered else pause
                if for_all:
                    self._down[name] = cause_of(failure)
                log.error("work in the background failed", work=name, again_in=pause, exc_info=failure)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._down.pop(name, None)

    async def _recovered(self, name: str, after: float) -> None:
        await self._clock.sleep(after)
        self._down.pop(name, None)

    def _own(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, InterpreterError):
            log.info("work ended", work=task.get_name(), error=str(error))
        else:
            log.error("work failed", work=task.get_name(), exc_info=error)


def cause_of(error: BaseException) -> str:
    """An error in a few words, without what it may hold of a user's data."""
    name = type(error).__name__
    if isinstance(error, InterpreterError):
        return str(error)[:_MAX_CAUSE]
    # Of others only those whose words are the system's.
    return f"{name}: {error}"[:_MAX_CAUSE] if isinstance(error, OSError | sqlite3.Error) else name


def is_cancelled() -> bool:
    """Whether this task is cancelled; else a CancelledError is that of something it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
