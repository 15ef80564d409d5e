"""Which of the outputs that came a front end still shows: what was cleared, updated or written over is gone.

As JupyterLab and nbclient do: ``clear_output`` takes all that is there, with ``wait`` when the next output comes;
an update takes the place of the one before it; and a line that returns to its beginning is written over.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_COLOURS: Final = re.compile("\x1b\\[[0-9;]*m")
_MOVES: Final = re.compile("[\x00-\x09\x0b\x0c\x0e-\x1f]")
"""What moves the cursor otherwise than the ends of lines do, or may: of such a line nothing is taken away."""
_LONG_LINE: Final = 10_000
_UNKNOWN: Final = 1 << 60

Superseded = Iterable[int]


class Picture:
    """The outputs of one cell by their numbers. Each method returns the numbers of those that are gone now."""

    def __init__(self) -> None:
        self._shown: dict[int, None] = {}
        self._clear_next: int | None = None
        self._updates: dict[str, int] = {}
        self._stream: str | None = None
        self._line: list[int] = []
        """Pieces that are whole within the line that is being written."""
        self._width = 0

    @property
    def clears_next(self) -> bool:
        """Whether the next output takes the place of all that is there."""
        return self._clear_next is not None

    def place(self, number: int, kind: str, content: Mapping[str, Any]) -> Superseded:
        """An output of any kind, with what its message says."""
        match kind, content:
            case "clear_output", _:
                return self.clear(number, wait=bool(content.get("wait")))
            case "stream", {"name": str(name), "text": str(text)}:
                return self.write(number, name, text)
            case "update_display_data", {"transient": {"display_id": str(display_id)}}:
                return self.update(number, display_id)
            case _:
                return self.add(number)

    def add(self, number: int) -> Superseded:
        """An output that is no text: a display, a result, an error."""
        gone = self._begin(number)
        self._stream = None
        return gone

    def clear(self, number: int, *, wait: bool) -> Superseded:
        """An output that clears those before it."""
        before = [] if self._clear_next is None else [self._clear_next]
        if wait:
            self._clear_next = number
            return before
        gone = [*self._shown, *before]
        self._forget_all()
        self._shown[number] = None
        return gone

    def update(self, number: int, display_id: str) -> Superseded:
        """A new content of what is displayed under a name."""
        before = self._updates.get(display_id)
        self._updates[display_id] = number
        self._shown[number] = None
        if before is None:
            return []
        del self._shown[before]
        return [before]

    def write(self, number: int, stream: str, text: str) -> Superseded:
        """Text of a stream."""
        gone = list(self._begin(number))
        if stream != self._stream:
            self._stream, self._line, self._width = stream, [], 0
        line, *more = text.split("\n")
        width = _width(line)
        if line.startswith("\r") and self._width <= width < _UNKNOWN:
            # What stood there is not seen any more, as the new text is as long.
            gone += self._line
            for one in self._line:
                del self._shown[one]
            self._line, self._width = [], width
        else:
            self._width = min(self._width + width, _UNKNOWN)
        if more:
            self._line, self._width = [], _width(more[-1])
        else:
            self._line.append(number)
        return gone

    def leave_out(self, number: int) -> None:
        """An output that was not kept after all."""
        self._shown.pop(number, None)
        self._line = [one for one in self._line if one != number]

    def _begin(self, number: int) -> Superseded:
        gone: list[int] = []
        if self._clear_next is not None:
            gone, clear = list(self._shown), self._clear_next
            self._forget_all()
            self._shown[clear] = None
        self._shown[number] = None
        return gone

    def _forget_all(self) -> None:
        self._shown.clear()
        self._updates.clear()
        self._clear_next = self._stream = None


def _width(line: str) -> int:
    if len(line) > _LONG_LINE:
        return _UNKNOWN
    plain = _COLOURS.sub("", line)
    return _UNKNOWN if _MOVES.search(plain) else max(map(len, plain.split("\r")))
