"""How long a stream that was closed waits for the other side to take what was written."""

import asyncio
from collections.abc import Callable
from typing import Final

LINGER: Final = 30.0
"""Seconds that a closed stream may go without progress before it is reset."""


class Linger:
    """Calls ``give_up`` when ``unsent`` did not change for LINGER seconds, from ``start`` until ``stop``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, unsent: Callable[[], int], give_up: Callable[[], None]) -> None:
        self._loop = loop
        self._unsent = unsent
        self._give_up = give_up
        self._mark = -1
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch from now on; once more changes nothing."""
        if self._timer is None:
            self._watch()

    def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self) -> None:
        unsent = self._unsent()
        if unsent == self._mark:
            self._give_up()
            return
        self._mark = unsent
        self._timer = self._loop.call_later(LINGER, self._watch)
