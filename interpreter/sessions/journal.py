"""The events of something that runs, kept up to a limit, for any number of readers who come at any time.

Whoever writes never waits for a reader, and a reader that is slow holds nobody up: both see one bounded list. Events
are kept as the JSON that readers get, once: what was printed is neither held twice nor written down anew for each.
"""

import asyncio
import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from interpreter.events import TOLD_TYPES
from interpreter.kernel.limits import dump_json, parse_json
from interpreter.kernel.memory import Room
from interpreter.picture import Picture

KEPT: Final = 100
"""What has ended stays in memory, this many of each kind in a session, as long as there is room."""
_ERROR_CHARACTERS: Final = 10_000
_ENTRY_BYTES: Final = 200
"""What an entry costs besides its JSON."""
_SUPERSEDED_SHARE: Final = 1 / 4
"""So much of the limit may be held of what is not shown any more: readers that follow see it meanwhile."""
_STDERR_SHARE: Final = 1 / 10
"""So much of the limit stderr has to itself when other output has used the limit up: it tells why something failed."""
_DISPLAYS: Final = frozenset({"display_data", "update_display_data"})
_TAKES_ITS_PLACE: Final = frozenset({"clear_output", "update_display_data"})
_STREAMS: Final = {name: f'{{"type":"stream","name":"{name}","text":"'.encode() for name in ("stdout", "stderr")}
_STREAM_END: Final = b'"}'
_ESCAPE: Final = len("\\u0000")
"""The longest one that is written here: half of a surrogate pair never is."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One event: its type, and all of it as JSON."""

    type: str
    json: bytes
    display_id: str | None = None
    """By which name a display may be updated, or is."""
    wait: bool = False
    """Of a ``clear_output``: whether it waits for the next output."""

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.json) + _ENTRY_BYTES

    @property
    def stream(self) -> str | None:
        """Which stream it is text of, if it is that."""
        return next((name for name, start in _STREAMS.items() if self.json.startswith(start)), None)

    def text(self, stream: str) -> memoryview:
        """Its text, as what stands between the quotes of a JSON string."""
        return memoryview(self.json)[len(_STREAMS[stream]) : -len(_STREAM_END)]


class Journal:
    """Events by number, until it is closed. ``limit`` is in bytes of output; ``room`` is shared with others.

    The limit is for what a front end would show of it (see `Picture`): what was cleared or updated since does not
    count, and goes when it takes much. It holds its room until it is forgotten and nobody reads it any more.
    """

    def __init__(self, limit: int, room: Room) -> None:
        self.truncated = False
        self.error: dict[str, Any] | None = None
        """The last exception, with as much of it as always finds room."""
        self._limit = limit
        self._room = room
        self._size = 0
        self._held = 0
        self._next = 0
        self._numbers: list[int] = []
        self._entries: list[JournalEntry] = []
        self._pictures: dict[int | None, Picture] = {}
        self._superseded: set[int] = set()
        self._superseded_size = 0
        self._is_thinned = False
        self._notice: int | None = None
        self._spare = 0
        self._closed = False
        self._readers = 0
        self._forgotten = False
        self._changed = asyncio.Event()

    @property
    def entries(self) -> list[JournalEntry]:
        """All events so far."""
        return self._entries

    @property
    def next(self) -> int:
        """The number that the next event gets."""
        return self._next

    def add(self, event: Mapping[str, Any]) -> None:
        """Add an event that is not output, whatever the limit says."""
        self._add(JournalEntry(event["type"], dump_json(event)))

    def add_output(self, event: Mapping[str, Any]) -> None:
        """Add an output; past the limit text is cut, and all else is left out but an error and the first of stderr.

        One event says so.
        There may be room again when what is there is cleared.
        """
        had_error = self.error is not None
        if event["type"] == "error":
            self.error = short_error(event)
        picture = self._picture(None)
        if self.truncated and not picture.clears_next and event["type"] not in _TAKES_ITS_PLACE:
            self._add_past_limit(picture, event, had_error=had_error)
            return
        entry = entry_of(event)
        self._supersede(picture, entry, event.get("text", ""))
        left = self._limit - self._size
        if entry.type == "clear_output" or (entry.size <= left and self._has_room(entry.size)):
            self._add(entry, counts=True)
            return
        if (cut := _cut(entry, left)) and self._has_room(cut.size):
            self._add(cut, counts=True)
        else:
            picture.leave_out(self._next)
        if not self.truncated:
            self.truncated = True
            self._spare = 0 if entry.stream == "stderr" else int(self._limit * _STDERR_SHARE)
            self._notice = self._next
            picture.add(self._next)
            self.add({"type": "truncated", "limit_bytes": self._limit})
        self._add_error(event, had_error=had_error)

    def pass_on(self, entry: JournalEntry, *, index: int) -> None:
        """Add the event of a cell of that ``index``, which another journal has, whatever the limit says."""
        if entry.type in TOLD_TYPES:
            stream = entry.stream
            text: str = parse_json(b'"' + entry.text(stream) + b'"') if stream else ""
            self._supersede(self._picture(index), entry, text)
        json = dump_json({"index": index})[:-1] + b"," + entry.json[1:]
        self._add(replace(entry, json=json), counts=True)

    def close(self) -> None:
        """Nothing comes any more."""
        self._closed = True
        if self._is_thinned:
            # Either all is there that came, or what is left of it.
            self._thin_out()
        self._tell()

    async def follow(self, start: int = 0) -> AsyncGenerator[tuple[int, JournalEntry]]:
        """All events from number ``start`` on with their numbers, those that are there and those that come."""
        number = start - 1
        with self.reading():
            while True:
                while (place := bisect_right(self._numbers, number)) < len(self._numbers):
                    number = self._numbers[place]
                    yield number, self._entries[place]
                if self._closed:
                    return
                await self._changed.wait()

    def outputs(self) -> Iterator[bytes | memoryview]:
        """A JSON list of all outputs, in pieces, with those of one stream that follow each other put together."""
        yield b"["
        joined: str | None = None
        first = True
        for entry in self._entries:
            if entry.type not in TOLD_TYPES:
                continue
            stream = entry.stream
            if joined is not None and stream != joined:
                yield _STREAM_END
            if stream is None or stream != joined:
                yield b"" if first else b","
                yield _STREAMS[stream] if stream else entry.json
            if stream is not None:
                yield entry.text(stream)
            joined, first = stream, False
        if joined is not None:
            yield _STREAM_END
        yield b"]"

    def printed(self, stream: str, start: int = 0, end: int | None = None) -> Iterator[bytes | memoryview]:
        """All text of one stream as a JSON string, in pieces; of the events with these numbers alone, when given."""
        places = (
            len(self._numbers) if number is None else bisect_left(self._numbers, number) for number in (start, end)
        )
        yield b'"'
        for entry in self._entries[slice(*places)]:
            if entry.stream == stream:
                yield entry.text(stream)
        yield b'"'

    @contextlib.contextmanager
    def reading(self) -> Generator[None]:
        """While the block runs it holds its room."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._let_go()

    def forget(self) -> None:
        """Nobody else can come for it."""
        self._forgotten = True
        self._let_go()

    def _let_go(self) -> None:
        if self._forgotten and not self._readers and self._held:
            self._room.give_back(self._held)
            self._held = 0

    def _add(self, entry: JournalEntry, *, counts: bool = False) -> None:
        self._room.take(entry.size)
        self._held += entry.size
        self._size += entry.size if counts else 0
        self._numbers.append(self._next)
        self._entries.append(entry)
        self._next += 1
        if self._superseded_size > self._limit * _SUPERSEDED_SHARE:
            self._thin_out()
        self._tell()

    def _picture(self, index: int | None) -> Picture:
        return self._pictures.setdefault(index, Picture())

    def _supersede(self, picture: Picture, entry: JournalEntry, text: str) -> None:
        """Note what is not shown any more once ``entry`` is added."""
        stream = entry.stream
        if entry.type == "clear_output":
            gone = picture.clear(self._next, wait=entry.wait)
        elif stream is not None:
            gone = picture.write(self._next, stream, text)
        elif entry.type == "update_display_data" and entry.display_id is not None:
            gone = picture.update(self._next, entry.display_id)
        else:
            gone = picture.add(self._next)
        for number in gone:
            size = self._entries[bisect_left(self._numbers, number)].size
            self._superseded.add(number)
            self._superseded_size += size
            if number == self._notice:
                self.truncated, self._notice = False, None
            else:
                self._size -= size

    def _has_room(self, size: int) -> bool:
        if not self._room.fits(size) and self._superseded:
            self._thin_out()
        return self._room.fits(size)

    def _thin_out(self) -> None:
        kept = [
            (number, entry)
            for number, entry in zip(self._numbers, self._entries, strict=True)
            if number not in self._superseded
        ]
        self._numbers = [number for number, _ in kept]
        self._entries = [entry for _, entry in kept]
        freed = min(self._superseded_size, self._held)
        self._room.give_back(freed)
        self._held -= freed
        self._superseded.clear()
        self._superseded_size = 0
        self._is_thinned = True

    def _add_past_limit(self, picture: Picture, event: Mapping[str, Any], *, had_error: bool) -> None:
        self._add_error(event, had_error=had_error)
        if event.get("name") != "stderr" or not self._spare:
            return
        entry = _cut(entry_of(event), self._spare)
        if entry is None or not self._has_room(entry.size):
            self._spare = 0
            return
        self._spare -= entry.size
        self._supersede(picture, entry, event["text"])
        self._add(entry, counts=True)

    def _add_error(self, event: Mapping[str, Any], *, had_error: bool) -> None:
        # How it ended is told also when there is no room for what it said before; once, the guest may send any number.
        if event["type"] == "error" and not had_error:
            self.add(short_error(event))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class HasJournal(Protocol):
    """Something that ran and is kept with what it told."""

    journal: Journal


T = TypeVar("T", bound=HasJournal)


def forget_oldest(ended: dict[str, T]) -> bool:
    """Forget what ended first; whether there was any. The last one stays: somebody may be about to ask for it."""
    if len(ended) < 2:
        return False
    ended.pop(next(iter(ended))).journal.forget()
    return True


def short_error(event: Mapping[str, Any]) -> dict[str, Any]:
    """An error with as much of it as always finds room."""
    lines: list[str] = event["traceback"]
    kept = "\n".join(lines)[-_ERROR_CHARACTERS:].split("\n")
    return {
        **event,
        "ename": event["ename"][:_ERROR_CHARACTERS],
        "evalue": event["evalue"][:_ERROR_CHARACTERS],
        "traceback": lines if sum(map(len, lines)) <= _ERROR_CHARACTERS else kept,
    }


def entry_of(event: Mapping[str, Any]) -> JournalEntry:
    """An output as an entry."""
    display_id = event.get("transient", {}).get("display_id") if event["type"] in _DISPLAYS else None
    return JournalEntry(
        event["type"],
        dump_json(event),
        display_id if isinstance(display_id, str) and display_id else None,
        wait=event["type"] == "clear_output" and bool(event.get("wait")),
    )


def _cut(entry: JournalEntry, left: int) -> JournalEntry | None:
    """As much of a text as fits in ``left`` bytes; None when hardly any does, or when it is none."""
    if (stream := entry.stream) is None:
        return None
    start = _STREAMS[stream]
    text = bytes(entry.text(stream)[: max(left - _ENTRY_BYTES - len(start) - len(_STREAM_END), 0)])
    text = _without_part(text)
    return JournalEntry(entry.type, start + text + _STREAM_END) if text else None


def _without_part(text: bytes) -> bytes:
    """What stands between the quotes of a JSON string, without the escape or character that it ends amid."""
    if (last := text.rfind(b"\\", max(len(text) - _ESCAPE + 1, 0))) >= 0:
        before = len(text[:last]) - len(text[:last].rstrip(b"\\"))
        length = _ESCAPE if text[last + 1 : last + 2] == b"u" else 2
        if before % 2 == 0 and last + length > len(text):
            return text[:last]
    for length, byte in enumerate(text[:-4:-1], 1):
        if byte >= 0xC0:
            # The first byte of UTF-8's sequences tells how many there are.
            return text if length >= 2 + (byte >= 0xE0) + (byte >= 0xF0) else text[:-length]
    return text
