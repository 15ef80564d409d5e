"""A context manager held by a task of its own, for those who enter and leave it at different times."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

T = TypeVar("T")


class Held(Generic[T]):
    """Entered from the start. A scope (a timeout, a task group) must be left in the task that entered it."""

    def __init__(self, context: AbstractAsyncContextManager[T]) -> None:
        self._entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._leaving = asyncio.Event()
        self._task = asyncio.create_task(self._hold(context))

    async def entered(self) -> T:
        """Wait until it is entered. Raises what entering it raises; it needs no leaving then."""
        try:
            return await asyncio.shield(self._entered)
        except BaseException:
            self._task.cancel()
            await asyncio.wait({self._task})
            raise

    def leave_soon(self) -> None:
        """Have it left, without waiting for that."""
        self._leaving.set()

    async def leave(self) -> None:
        """Leave it, and wait until that is done. Raises what leaving it raises."""
        self._leaving.set()
        await self._task

    async def _hold(self, context: AbstractAsyncContextManager[T]) -> None:
        try:
            async with context as value:
                if not self._entered.done():
                    self._entered.set_result(value)
                await self._leaving.wait()
        except Exception as error:
            if self._entered.done():
                raise
            self._entered.set_exception(error)
        finally:
            self._entered.cancel()
