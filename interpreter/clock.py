"""The one clock of the service. Tests give it another, so that timeouts pass without anybody sleeping."""

import asyncio
import time
from typing import Final, Protocol

_STEP_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 10.0


class Clock(Protocol):
    """Where time comes from: what it is now for records, and how much has passed for everything that is counted."""

    def now(self) -> float:
        """Seconds since 1970. May be set forwards or back at any time: never take the difference of two."""
        ...

    def elapsed(self) -> float:
        """Seconds since the host was started. They pass evenly, also while it sleeps, and for all processes alike."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when that many seconds have passed."""
        ...


class SystemClock:
    """The host's clock: CLOCK_BOOTTIME of clock_gettime(2), and what it says of the time of day.

    The time of day goes as evenly as what has passed, but for steps of a second or more.
    """

    def __init__(self) -> None:
        self._offset = time.time() - self.elapsed()

    def now(self) -> float:
        """Seconds since 1970."""
        elapsed, told = self.elapsed(), time.time()
        if abs(told - elapsed - self._offset) >= _STEP_SECONDS:
            self._offset = told - elapsed
        return self._offset + elapsed

    def elapsed(self) -> float:
        """Seconds since the host was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Return when that many seconds have passed; a few later when the host slept meanwhile."""
        until, left = self.elapsed() + seconds, seconds
        while True:
            # In pieces: the loop's own clock stands still while the host sleeps.
            await asyncio.sleep(min(left, _LOOK_SECONDS))
            left = until - self.elapsed()
            if left <= 0:
                return
