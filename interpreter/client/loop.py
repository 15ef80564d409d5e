"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")

_END: Final = object()
_CANCEL_SECONDS: Final = 5.0
"""Seconds that what was cancelled may take to close what it has open."""


class BackgroundLoop:
    """Runs coroutines for callers in any thread."""

    def __init__(self, name: str = "interpreter-client") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._loop.is_closed()

    def close(self) -> None:
        """End the loop; who waits for something in another thread gets CancelledError. Does nothing the second time."""
        if self._loop.is_closed():
            return
        self.run(_finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine's result. When the waiting is broken off, by Ctrl-C for one, so is the coroutine.

        Raises RuntimeError when the loop is closed, or when called in the loop itself, which would wait forever.
        """
        if self._loop.is_closed() or threading.current_thread() is self._thread:
            work.close()
            closed = self._loop.is_closed()
            raise RuntimeError("the client is closed" if closed else "the client cannot be used in its own callback")
        # Not run_coroutine_threadsafe: Ctrl-C may come before it returns, and then nothing could cancel the coroutine.
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()
        task: asyncio.Task[T] | None = None

        def begin() -> None:
            nonlocal task
            task = self._loop.create_task(work)
            task.add_done_callback(end)

        def end(done: asyncio.Task[T]) -> None:
            if done.cancelled():
                outcome.cancel()
                outcome.set_running_or_notify_cancel()
            elif (error := done.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(done.result())

        def give_up() -> None:
            if task is not None:
                task.cancel()
            else:
                work.close()

        try:
            self._loop.call_soon_threadsafe(begin)
            return outcome.result()
        except BaseException:
            if not outcome.done():
                self._loop.call_soon_threadsafe(give_up)
                concurrent.futures.wait({outcome}, _CANCEL_SECONDS)
            raise

    async def join(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait in another loop for a coroutine's result; when the waiting is cancelled, so is the coroutine.

        Raises RuntimeError when the loop is closed.
        """
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the loop is closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Have a coroutine run, and do not wait for it. Does nothing when the loop is closed."""
        try:
            asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()

    def iterate(self, items: AsyncGenerator[T]) -> Generator[T]:
        """The items of an asynchronous generator, which is closed when this one is."""

        async def following() -> T | object:
            return await anext(items, _END)

        try:
            while (item := self.run(following())) is not _END:
                yield item  # type: ignore[misc]
        finally:
            if not self._loop.is_closed():
                self.run(_closed(items))


async def _finish() -> None:
    # In the loop's own thread: the one that closes it may have a loop that runs.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_CANCEL_SECONDS)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


async def _closed(items: AsyncGenerator[Any]) -> None:
    await items.aclose()
