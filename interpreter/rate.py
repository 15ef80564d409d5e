"""How often something may happen: so often a second, and some at once after a pause."""

import time
from collections.abc import Callable


class Rate:
    """A bucket of tokens that fills by ``per_second`` up to ``at_once``."""

    def __init__(self, per_second: float, at_once: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._at_once = at_once
        self._now = now
        self._tokens = float(at_once)
        self._filled_at = now()

    def take(self) -> bool:
        """Whether it may happen now; then it counts."""
        now = self._now()
        self._tokens = min(self._tokens + (now - self._filled_at) * self._per_second, self._at_once)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
