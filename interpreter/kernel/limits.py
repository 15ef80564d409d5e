"""The one gate for JSON that others wrote: size, values and depth are counted in its bytes before it is parsed.

Parsing holds up everybody: it runs in the event loop, and a thread would keep Python's lock all the same. So what may
be parsed is bounded, by passes over the bytes, never by walking values, and those of long ones are made in steps.
"""

import json
from array import array
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Final

from pydantic_core import from_json, to_json

from interpreter.errors import TooLarge
from interpreter.turns import MUCH, Steps, at_once

MAX_SIZE: Final = 16 * 1024 * 1024
"""Bytes of one JSON text. One long string, such as an image, is parsed fast; an execution keeps less by default."""
MAX_VALUES: Final = 200_000
"""Values of one JSON text; keys count too, and an empty list or object as two."""
MAX_DEPTH: Final = 100
"""Lists and objects in each other: what is deeper cannot be walked through, or written again, by everybody."""
MAX_NUMBER: Final = 500
"""Characters of one number: the time to parse one grows with their square."""
STEP: Final = 2 * MUCH
"""Bytes that are counted in one turn of the event loop, in 20 ms at most."""
_MARKS: Final = b",[{:"
_DIGITS: Final = b"0123456789"
_FEW_NUMBERS: Final = 100
_FEW_DIGITS: Final = 1_000_000
"""So many numbers, or digits, are parsed in time, however long or few the numbers are: Python takes 4300 digits."""
_HALVES: Final = (b"\\ud", b"\\uD")
_MAX_MENDED: Final = 4 * 1024 * 1024
_ALL: Final = bytes(range(256))
_BRACKETS: Final = b"[]{}"
_NO_BRACKETS: Final = bytes(set(_ALL) - set(_BRACKETS))
_STEPS: Final = bytes.maketrans(_BRACKETS, b"\x01\xff\x01\xff")
"""One level down or up, as signed bytes."""
_BREAKS: Final = bytes.maketrans(b"[]{}: \t\r\n", b"," * 9)


def check_json(data: bytes, what: str, *, size: int = MAX_SIZE, values: int = MAX_VALUES) -> None:
    """Raises TooLarge, which says ``what`` it is, when JSON in UTF-8 is over a limit. It need not be JSON."""
    at_once(checking(data, what, size=size, values=values))


def checking(
    data: bytes, what: str, *, size: int = MAX_SIZE, values: int = MAX_VALUES, step: int = STEP
) -> Steps[None]:
    """As `check_json`, in steps of so many bytes."""
    if len(data) > size:
        raise TooLarge(f"{what} has {len(data)} bytes of JSON, at most {size} can be read")
    # Counted in strings too at first, which is quicker and never too few.
    opened = marks = 0
    for piece in _slices(data, step):
        brackets = piece.count(b"[") + piece.count(b"{")
        opened += brackets
        marks += brackets + piece.count(b",") + piece.count(b":")
        if len(piece) < len(data):
            yield
    if marks < values and opened <= MAX_DEPTH:
        digits = 0
        for piece in _slices(data, step) if marks > _FEW_NUMBERS else ():
            digits += _count(piece, _DIGITS)
            if len(piece) < len(data):
                yield
        if digits <= _FEW_DIGITS:
            return
    segments: list[bytes] = []
    quotes = 0
    for piece in _slices(data, step):
        # Backslashes are in strings alone (where not, a parser stops); without those that stand for themselves and for
        # quotes, each quote is an end.
        bare = piece.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in piece else piece
        is_inside = quotes % 2 == 1
        quotes += bare.count(b'"')
        if quotes > 2 * values:
            raise _too_many(what, values)
        outside = bare.split(b'"')[is_inside::2]
        if segments and not is_inside:
            segments[-1] += outside.pop(0)
        segments += outside
        if len(piece) < len(data):
            yield
    outside = b'""'.join(segments)
    if _count(outside, _MARKS) >= values:
        raise _too_many(what, values)
    if max(map(len, outside.translate(_BREAKS).split(b","))) > MAX_NUMBER:
        raise TooLarge(f"{what} has a number of more than {MAX_NUMBER} characters")
    if max(accumulate(array("b", outside.translate(_STEPS, _NO_BRACKETS))), default=0) > MAX_DEPTH:
        raise TooLarge(f"{what} has more than {MAX_DEPTH} lists and objects in each other")


def load_json(data: bytes, what: str, *, size: int = MAX_SIZE, values: int = MAX_VALUES) -> Any:
    """What JSON says. What is no UTF-8, or half a surrogate pair, becomes ``\\ufffd``.

    Raises TooLarge as `check_json` does; ValueError when it is no JSON.
    """
    check_json(data, what, size=size, values=values)
    return parse_json(data)


def parse_json(data: bytes) -> Any:
    """As `load_json`, of what was checked already."""
    try:
        return from_json(data, cache_strings="keys")
    except ValueError:
        if len(data) > _MAX_MENDED:
            raise
    text = data.decode("utf-8", "replace")
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:
        if not any(half in data for half in _HALVES):
            raise
    # Half a surrogate pair is no text: nothing after this could write it down.
    whole = json.dumps(json.loads(text), ensure_ascii=False)
    return from_json(whole.encode("utf-8", "replace"))


def dump_json(value: object) -> bytes:
    """JSON in UTF-8, quickly; text that is none has ``?`` in its place."""
    try:
        return to_json(value)
    except ValueError:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _too_many(what: str, values: int) -> TooLarge:
    # Not a variable beside the data: error, traceback and data would hold each other.
    return TooLarge(f"{what} has more than {values} values")


def _slices(data: bytes, step: int) -> Iterator[bytes]:
    """All of it in order. No escape lies in two of them."""
    start = 0
    while len(data) - start > step:
        piece = data[start : start + step]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = data[start : start + step + 1]
        yield piece
        start += len(piece)
    yield data[start:]


def _count(data: bytes, characters: bytes) -> int:
    return len(data) - len(data.translate(None, characters))
