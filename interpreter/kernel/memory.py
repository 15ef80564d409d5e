"""What this process holds for one session, counted in bytes and bounded: what is kept, and what is under way."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

_KEPT_SHARE: Final = 2 / 3
SMALL: Final = 64 * 1024
"""Bytes that are counted but never waited with: what ends or interrupts something long is as short as that."""


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

    @asynccontextmanager
    async def holding(self, size: int) -> AsyncGenerator[None]:
        """While the block runs ``size`` bytes are taken; entered when they fit, or are few."""
        if size > SMALL:
            await self.wait_for(size)
        else:
            self.take(size)
        try:
            yield
        finally:
            self.give_back(size)

    async def freed(self) -> None:
        """Return when something was given back."""
        await self._freed.wait()

    def _is_full(self, size: int) -> bool:
        return self.held > 0 and self.held + size > self.limit


class SessionMemory:
    """The room of one session: ``kept`` for requests, outputs and what waits for readers; what is under way apart.

    That is ``under_way`` for messages from the guest, ``sent`` for those to it and bodies of requests. Apart from each
    other, so that a session that keeps all it may can still be told that something has ended, and none waits for what
    itself holds up.
    """

    def __init__(self, limit: float) -> None:
        self.kept = Room(0)
        self.under_way = Room(0)
        self.sent = Room(0)
        self.set_limit(limit)

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self.kept.held + self.under_way.held + self.sent.held

    def set_limit(self, limit: float) -> None:
        """Give it another size."""
        self.kept.limit = limit * _KEPT_SHARE
        self.under_way.limit = self.sent.limit = (limit - self.kept.limit) / 2


def size_of(value: object) -> int:
    """Bytes that JSON takes when it is parsed: text with one rare character in it takes four for each."""
    size = 0
    left = [value]
    while left:
        one = left.pop()
        size += sys.getsizeof(one)
        if isinstance(one, dict):
            left += cast("dict[str, Any]", one).values()
        elif isinstance(one, list):
            left += cast("list[Any]", one)
    return size
