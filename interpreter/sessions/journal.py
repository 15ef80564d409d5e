"""The events of something that runs, kept up to a limit, for any number of readers who come at any time.

Whoever writes never waits for a reader, and a reader that is slow holds nobody up: both see one bounded list.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, Protocol, TypeVar

Event = dict[str, Any]

KEPT: Final = 100
"""What has ended stays in memory, this many of each kind in a session,"""
KEPT_FULL: Final = 5
"""with as many bytes of output as this many that reached their limit."""
_ERROR_CHARACTERS: Final = 10_000
_EVENT_BYTES: Final = 200
"""What an event costs besides its content."""


class Journal:
    """A list of events that grows until it is closed. ``limit`` is in bytes of output."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._events: list[Event] = []
        self._closed = False
        self._has_error = False
        self._changed = asyncio.Event()
        self.truncated = False

    @property
    def size(self) -> int:
        """About how many bytes of output it holds."""
        return min(self._size, self._limit)

    @property
    def events(self) -> list[Event]:
        """All events so far."""
        return self._events

    def add(self, event: Event) -> None:
        """Add an event that is not output, whatever the limit says."""
        self._events.append(event)
        self._tell()

    def add_output(self, event: Event) -> None:
        """Add an output; past the limit text is cut, all else is left out but an error, and one event says so."""
        if self.truncated:
            self._add_error(event)
            return
        left = self._limit - self._size
        size = size_of(event)
        self._size += size
        if size > left:
            self.truncated = True
            text = event.get("text")
            if isinstance(text, str) and left > _EVENT_BYTES:
                # Never half a character.
                kept = text.encode("utf-8", "replace")[: left - _EVENT_BYTES].decode("utf-8", "ignore")
                self._events.append({**event, "text": kept})
            self.add({"type": "truncated", "limit_bytes": self._limit})
            self._add_error(event)
            return
        self._has_error = self._has_error or event["type"] == "error"
        self.add(event)

    def close(self) -> None:
        """Nothing comes any more."""
        self._closed = True
        self._tell()

    async def follow(self, start: int = 0) -> AsyncGenerator[tuple[int, Event]]:
        """All events from number ``start`` on with their numbers, those that are there and those that come."""
        position = start
        while True:
            while position < len(self._events):
                yield position, self._events[position]
                position += 1
            if self._closed:
                return
            await self._changed.wait()

    def _add_error(self, event: Event) -> None:
        # How it ended is told also when there is no room for what it said before; once, the guest may send any number.
        if event["type"] == "error" and not self._has_error:
            self._has_error = True
            self.add(short_error(event))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HasJournal(Protocol):
    """Something that ran and is kept with what it told."""

    journal: Journal


T = TypeVar("T", bound=HasJournal)


def forget_oldest(ended: dict[str, T], limit: int) -> None:
    """Leave the last KEPT that ended, and of these KEPT_FULL times ``limit`` bytes at most; always the last one."""
    size = sum(one.journal.size for one in ended.values())
    while len(ended) > 1 and (len(ended) > KEPT or size > KEPT_FULL * limit):
        size -= ended.pop(next(iter(ended))).journal.size


def short_error(event: Event) -> Event:
    """An error with as much of it as always finds room."""
    lines: list[str] = event["traceback"]
    kept = "\n".join(lines)[-_ERROR_CHARACTERS:].split("\n")
    return {
        **event,
        "ename": event["ename"][:_ERROR_CHARACTERS],
        "evalue": event["evalue"][:_ERROR_CHARACTERS],
        "traceback": kept,
    }


def size_of(value: object) -> int:
    """About how many bytes a value takes as JSON."""
    match value:
        case str():
            return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
        case Mapping():
            return _EVENT_BYTES + sum(size_of(key) + size_of(part) for key, part in value.items())  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case list():
            return sum(size_of(part) + 8 for part in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case int():
            return 16 + value.bit_length() // 3
        case _:
            return 16
