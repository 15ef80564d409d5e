"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, Final, TypeVar

T = TypeVar("T")

_END: Final = object()
_CANCEL_SECONDS: Final = 5.0
"""Seconds that what was cancelled may take to close what it has open."""


class BackgroundLoop:
    """Runs coroutines for callers in any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="interpreter-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop. Does nothing the second time."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a coroutine's result. When the waiting is broken off, by Ctrl-C for one, so is the coroutine.

        Raises RuntimeError when the loop is closed, or when called in the loop itself, which would wait forever.
        """
        if self._loop.is_closed() or threading.current_thread() is self._thread:
            work.close()
            closed = self._loop.is_closed()
            raise RuntimeError("the client is closed" if closed else "the client cannot be used in its own callback")
        ended = threading.Event()

        async def main() -> T:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(main(), self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                ended.wait(_CANCEL_SECONDS)
            raise

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


async def _closed(items: AsyncGenerator[Any]) -> None:
    await items.aclose()
