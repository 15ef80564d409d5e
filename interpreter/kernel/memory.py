"""What this process holds for one session, counted in bytes and bounded: what is kept, and what is under way."""

import asyncio
from collections.abc import Callable
from typing import Final

_KEPT_SHARE: Final = 2 / 3


class Room:
    """So many bytes for all that shares them. One that comes when nothing is there always fits, however large."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.held = 0
        self.forget: list[Callable[[], bool]] = []
        """Asked in turn to let go of what is oldest and over when there is no room; False when it has nothing."""
        self._freed = asyncio.Event()

    def take(self, size: int) -> None:
        """Count ``size`` bytes, whether or not they fit."""
        self.held += size

    def give_back(self, size: int) -> None:
        """They are gone."""
        self.held -= size
        self._freed.set()
        self._freed = asyncio.Event()

    def fits(self, size: int) -> bool:
        """Whether there is room for ``size`` bytes, once all that may be forgotten for it is."""
        while self._is_full(size) and any(forget() for forget in self.forget):
            continue
        return not self._is_full(size)

    async def wait_for(self, size: int) -> None:
        """Take ``size`` bytes when they fit."""
        while not self.fits(size):
            await self._freed.wait()
        self.take(size)

    async def freed(self) -> None:
        """Return when something was given back."""
        await self._freed.wait()

    def _is_full(self, size: int) -> bool:
        return self.held > 0 and self.held + size > self.limit


class SessionMemory:
    """The room of one session: ``kept`` for requests, outputs and what waits for readers, ``under_way`` for messages.

    Apart from each other, so that a session that keeps all it may can still be told that something has ended.
    """

    def __init__(self, limit: float) -> None:
        self.kept = Room(limit * _KEPT_SHARE)
        self.under_way = Room(limit - self.kept.limit)

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self.kept.held + self.under_way.held

    def set_limit(self, limit: float) -> None:
        """Give it another size."""
        self.kept.limit = limit * _KEPT_SHARE
        self.under_way.limit = limit - self.kept.limit
