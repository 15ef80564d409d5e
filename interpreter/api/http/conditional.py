"""What a GET or HEAD of a file is answered with: all of it, a part, or nothing (RFC 9110, sections 13 and 14)."""

import email.utils
import re
from dataclasses import dataclass
from datetime import UTC
from typing import Final, Literal

from starlette.datastructures import Headers

_ETAG: Final = re.compile(r'(W/)?"([^"]*)"')
# As many digits as any size has.
_RANGE: Final = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Validators:
    """What tells one state of a file from another."""

    size: int
    etag: str
    """Strong, in its quotes."""
    modified: int | None
    """Seconds since 1970, as Last-Modified tells them."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The status of the answer and, where it has a body of the file's, which bytes of it."""

    status: Literal[200, 206, 304, 412, 416]
    start: int = 0
    count: int = 0


def select(headers: Headers, file: Validators, *, ranges: bool) -> Selected:
    """What to answer to a request with these headers. Several ranges at once, and those not understood, get it all.

    Without ``ranges``, as for HEAD, Range is passed over.
    """
    if (wanted := _listed(headers, "if-match")) is not None:
        # Weak ones never match here.
        if wanted != "*" and file.etag not in [f'"{tag}"' for weak, tag in _ETAG.findall(wanted) if not weak]:
            return Selected(412)
    elif _later(file.modified, headers.get("if-unmodified-since")) is True:
        return Selected(412)
    if (known := _listed(headers, "if-none-match")) is not None:
        if known == "*" or file.etag in [f'"{tag}"' for _, tag in _ETAG.findall(known)]:
            return Selected(304)
    elif _later(file.modified, headers.get("if-modified-since")) is False:
        return Selected(304)
    whole = Selected(200, 0, file.size)
    # Of an empty file there is no part; who resumes its download has all of it.
    if not ranges or not file.size or not _same(headers.get("if-range"), file):
        return whole
    return _part(headers.get("range", ""), file.size) or whole


def _part(text: str, size: int) -> Selected | None:
    match = _RANGE.fullmatch(text.strip())
    if match is None or match[1] == match[2] == "":
        return None
    if not match[1]:
        count = min(int(match[2]), size)
        return Selected(206, size - count, count) if count else Selected(416)
    first = int(match[1])
    last = int(match[2]) if match[2] else max(first, size)
    if last < first:
        return None
    return Selected(206, first, min(last, size - 1) - first + 1) if first < size else Selected(416)


def _same(if_range: str | None, file: Validators) -> bool:
    if if_range is None:
        return True
    return if_range.strip() == file.etag or (file.modified is not None and _seconds(if_range) == file.modified)


def _later(modified: int | None, than: str | None) -> bool | None:
    """None when there is nothing to compare."""
    seconds = _seconds(than)
    return None if modified is None or seconds is None else modified > seconds


def _seconds(date: str | None) -> int | None:
    try:
        parsed = email.utils.parsedate_to_datetime(date or "")
        return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None


def _listed(headers: Headers, name: str) -> str | None:
    values = headers.getlist(name)
    return ", ".join(values).strip() if values else None
