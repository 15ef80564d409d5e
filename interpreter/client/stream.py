"""Server-sent events (WHATWG HTML, section 9.2): bytes in, events out, no I/O."""

import re
from dataclasses import dataclass
from typing import Final

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event. ``id`` is that of the last event that had one."""

    data: str
    event: str = "message"
    id: str = ""


class EventParser:
    """Parses a stream, however its bytes are cut. An event at the end that no empty line follows is not one."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._after_cr = False
        self._first = True
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that these bytes complete."""
        if self._after_cr and data:
            # The end of a line cut in two, not a line of its own.
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if not data:
            return []
        self._after_cr = data.endswith(b"\r")
        *ended, rest = _LINE_END.split(data)
        events: list[ServerEvent] = []
        for part in ended:
            self._line.append(part)
            line = b"".join(self._line)
            self._line.clear()
            if event := self._take(line):
                events.append(event)
        # Kept in pieces until its end comes: a line of megabytes must not be copied with each of them.
        if rest:
            self._line.append(rest)
        return events

    def _take(self, line: bytes) -> ServerEvent | None:
        if self._first:
            line, self._first = line.removeprefix(_BOM), False
        if not line:
            return self._dispatch()
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case _:
                # A comment has no name. What is not known is left out, as the standard says.
                pass
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent("\n".join(self._data), self._event or "message", self._id) if self._data else None
        self._data.clear()
        self._event = ""
        return event
