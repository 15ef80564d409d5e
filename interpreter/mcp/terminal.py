"""Text as a terminal would show it in the end: what was written over or erased is gone. Pure functions."""

import re
from typing import Final

_LONGEST: Final = 200_000
"""Characters of text with movements that are followed; of longer text its beginning and its end."""
_WIDEST: Final = 1_000
"""Columns that a line is filled up to before something stands there: a movement may name any number."""
_MOVES: Final = "ABCDEFGHJKf"
# Movements of the cursor and erasing are followed; colours and all else of CSI, titles and links (OSC), and the
# sequences of two characters show nothing.
_INVISIBLE: Final = re.compile(
    rf"\x1b(?!\[[0-9;]*[{_MOVES}])(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])"
)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_MOVING: Final = re.compile(r"[\r\x08]|\x1b\[")
_TOKENS: Final = re.compile(rf"\x1b\[([0-9;]*)([{_MOVES}])|[\r\n\x08]|[^\r\n\x08\x1b]+|\x1b")
_LEFT_OUT: Final = "\n[...]\n"


def as_shown(text: str) -> str:
    """Text without control characters but tabs and newlines, as a terminal shows it that is as high as need be."""
    text = _INVISIBLE.sub("", text).replace("\r\n", "\n")
    if _MOVING.search(text):
        if len(text) > _LONGEST:
            text = text[: _LONGEST // 2] + _LEFT_OUT + text[-_LONGEST // 2 :]
        screen = _Screen()
        for token in _TOKENS.finditer(text):
            screen.take(token)
        text = screen.text()
    return _CONTROLS.sub("", text)


class _Screen:
    def __init__(self) -> None:
        self._lines: list[list[str]] = [[]]
        self._touched: set[int] = set()
        """Lines that were written over: blanks at their ends are what is left of what stood there."""
        self._row = 0
        self._column = 0

    def text(self) -> str:
        lines = ("".join(line) for line in self._lines)
        return "\n".join(line.rstrip(" ") if row in self._touched else line for row, line in enumerate(lines))

    def take(self, token: re.Match[str]) -> None:
        match token[0]:
            case "\n":
                self._row += 1
                self._column = 0
                if self._row == len(self._lines):
                    self._lines.append([])
            case "\r":
                self._column = 0
            case "\b":
                self._column = max(self._column - 1, 0)
            case "\x1b":
                pass
            case text if token[2] is None:
                self._write(text)
            case _:
                self._move(token[2], [int(number[:6] or 0) for number in token[1].split(";")])

    def _write(self, text: str) -> None:
        line = self._lines[self._row]
        if self._column < len(line):
            self._touched.add(self._row)
        elif self._column > len(line):
            self._column = max(min(self._column, _WIDEST), len(line))
            line.extend(" " * (self._column - len(line)))
            self._touched.add(self._row)
        line[self._column : self._column + len(text)] = text
        self._column += len(text)

    def _move(self, kind: str, numbers: list[int]) -> None:
        count = max(numbers[0], 1)
        if kind in "AF":
            self._row = max(self._row - count, 0)
        elif kind in "BE":
            # Not past what is there: a terminal would stop at its lower end.
            self._row = min(self._row + count, len(self._lines) - 1)
        elif kind == "C":
            self._column += count
        elif kind == "D":
            self._column = max(self._column - count, 0)
        elif kind == "G":
            self._column = count - 1
        elif kind in "Hf":
            self._row = min(count - 1, len(self._lines) - 1)
            self._column = max(numbers[1] if len(numbers) > 1 else 1, 1) - 1
        elif kind == "K":
            self._erase_line(numbers[0])
        else:
            self._erase_screen(numbers[0])
        if kind in "EF":
            self._column = 0

    def _erase_line(self, part: int) -> None:
        line = self._lines[self._row]
        if part == 0:
            del line[self._column :]
        elif part == 2:
            line.clear()
        else:
            count = min(self._column + 1, len(line), _WIDEST)
            line[:count] = " " * count
        self._touched.add(self._row)

    def _erase_screen(self, part: int) -> None:
        if part == 0:
            self._erase_line(0)
            del self._lines[self._row + 1 :]
        elif part in {2, 3}:
            # What stood there has scrolled away for who reads on.
            self._lines = [[]]
            self._touched.clear()
            self._row = 0
