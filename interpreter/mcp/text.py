"""What a model reads: results as short text. Pure functions."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from interpreter.mcp.terminal import as_shown

LIMIT: Final = 20_000
"""Characters of text in one answer, at most."""
IMAGE_TYPES: Final = ("image/png", "image/jpeg", "image/gif", "image/webp")
"""What clients show."""
_ERROR_LIMIT: Final = 6_000
_RICH_LIMIT: Final = 6_000
"""Characters of one value that is no plain text: markup is long, and less of it is read."""
_FRAMES: Final = 4
_FRAME_LINE: Final = re.compile(r"(?:Cell In\[|Input In ?\[|File )")
_CELL_LINE: Final = re.compile(r"(?:Cell In\[|Input In ?\[)")
_NO_TEXT: Final = re.compile(r"<[\w.]+(?: object)?(?: at 0x[0-9a-fA-F]+)?>")
"""What stands for an object that has no text of its own."""
_RICH_TYPES: Final = (
    "text/markdown",
    "text/latex",
    "application/json",
    "image/svg+xml",
    "text/html",
    "application/javascript",
)
_DRAWINGS: Final = frozenset({"image/svg+xml", "application/pdf"})
"""What plots are drawn as on demand, beside PNG and JPEG."""
_JSON_TYPE: Final = re.compile(r"application/(.*\+)?json")
_DATA_URL: Final = re.compile(r"(data:[\w/+.-]*(?:;[\w=-]*)*,)[^\"')\s>]{100,}")


def plain(text: str) -> str:
    """Text as a terminal shows it in the end: of a progress bar its last state, no colours, nothing that was erased."""
    return as_shown(text)


def cut(text: str, limit: int = LIMIT) -> str:
    """Text of at most ``limit`` characters: when it is longer its middle is left out, and it says how much."""
    if len(text) <= limit:
        return text
    # The note's own length changes with the number in it; a note made for the whole text is the longest.
    room = limit - len(_note(len(text)))
    if room <= 0:
        return text[:limit]
    head = room * 2 // 3
    tail = room - head
    return text[:head] + _note(len(text) - head - tail) + text[len(text) - tail :]


def traceback_text(ename: str, evalue: str, traceback: Sequence[str]) -> str:
    """An exception for a model: its own frames and the last ones, without colours, and always its message."""
    # Each for itself: a carriage return in the value must not write over the name.
    message = cut(f"{plain(ename)}: {plain(evalue)}" if evalue else plain(ename), _ERROR_LIMIT // 2)
    entries = [plain(entry).strip("\n") for entry in traceback]
    frames = [index for index, entry in enumerate(entries) if _FRAME_LINE.match(entry)]
    if not frames:
        # A SyntaxError has its place in the one entry that it has; a chained exception is left as it is.
        whole = "\n".join(entries).strip()
        return (
            cut(whole, _ERROR_LIMIT)
            if message in whole
            else cut(f"{whole}\n{message}" if whole else message, _ERROR_LIMIT)
        )
    own = [index for index in frames if _CELL_LINE.match(entries[index])]
    kept = sorted({*own[-1:], *frames[-_FRAMES:]})
    lines = ["Traceback (most recent call last):"]
    before = frames[0] - 1
    for index in kept:
        left_out = sum(1 for frame in frames if before < frame < index)
        if left_out:
            lines.append(f"[... {left_out} frames left out ...]")
        lines.append(entries[index])
        before = index
    return f"{cut(chr(10).join(lines), _ERROR_LIMIT - len(message) - 1)}\n{message}"


def execution_text(outputs: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The outputs of code as one text, in the order in which things came; those that are an image are left out.

    ``outputs`` are as `shown` gives them. ``notes`` are the service's own words on how it ended; they and the
    exception are never cut away.
    """
    parts: list[str] = []
    errors: list[str] = []
    for output in outputs:
        match output.get("type"):
            case "stream":
                text = plain(str(output.get("text", "")))
                parts.append(f"[stderr]\n{text}" if output.get("name") == "stderr" else text)
            case "error":
                lines: Sequence[object] = output.get("traceback") or []
                name, message = str(output.get("ename", "Error")), str(output.get("evalue", ""))
                errors.append(traceback_text(name, message, [str(line) for line in lines]))
            case "execute_result" | "display_data" | "update_display_data":
                data: Mapping[str, Any] = output.get("data") or {}
                if image_of(data) is None and (text := _text_of(data)):
                    parts.append(text)
            case _:
                pass
    return _joined(parts, [*errors, *notes])


def command_text(stdout: str, stderr: str, notes: Sequence[str] = ()) -> str:
    """What a command printed, as text."""
    parts = [plain(stdout)] if stdout else []
    if stderr:
        parts.append(f"[stderr]\n{plain(stderr)}")
    return _joined(parts, notes)


def image_of(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """The type and base64 of the image in a mime bundle, when it has one that clients show."""
    for mime_type in IMAGE_TYPES:
        encoded = data.get(mime_type)
        if isinstance(encoded, str):
            return mime_type, encoded
    return None


def shown(outputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Outputs as a front end shows them in the end.

    Neighbouring writes to one stream are joined, displays that were updated show what they show last, what was
    cleared is gone. An update of what an earlier call has displayed is shown for itself.
    """
    groups: list[list[Mapping[str, Any]]] = []
    last: dict[str, Mapping[str, Any]] = {}
    visible: set[str] = set()
    gone: set[str] = set()
    clear_next = False
    for output in outputs:
        kind = output.get("type")
        if clear_next or (kind == "clear_output" and not output.get("wait")):
            groups.clear()
            gone |= visible
            visible.clear()
        clear_next = kind == "clear_output" and bool(output.get("wait"))
        if kind == "clear_output":
            continue
        display_id = _display_id(output)
        if display_id is not None:
            last[display_id] = output
            if kind == "update_display_data" and (display_id in visible or display_id in gone):
                continue
            visible.add(display_id)
        first: Mapping[str, Any] = groups[-1][0] if groups else {}
        if kind == first.get("type") == "stream" and output.get("name") == first.get("name"):
            groups[-1].append(output)
        else:
            groups.append([output])
    return [_joined_group(group, last) for group in groups]


def _joined_group(group: list[Mapping[str, Any]], last: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(group) > 1:
        return {**group[0], "text": "".join(str(output.get("text", "")) for output in group)}
    display_id = _display_id(group[0])
    return group[0] if display_id is None else last[display_id]


def _display_id(output: Mapping[str, Any]) -> str | None:
    if output.get("type") not in {"display_data", "update_display_data"}:
        return None
    match output.get("transient"):
        case {"display_id": str(display_id)} if display_id:
            return display_id
        case _:
            return None


def _text_of(data: Mapping[str, Any]) -> str:
    value = data.get("text/plain")
    text = plain(_as_text(value)) if value is not None else ""
    if text and not _NO_TEXT.fullmatch(text.strip()):
        unseen = sorted(kind for kind in data if kind in _DRAWINGS)
        return (
            f"{text}\n[It is drawn as {', '.join(unseen)}, which cannot be shown here: draw it as PNG.]"
            if unseen
            else text
        )
    for mime_type in (*_RICH_TYPES, *sorted(kind for kind in data if _JSON_TYPE.fullmatch(kind))):
        if (value := data.get(mime_type)) is not None:
            rich = value if mime_type != "application/json" else json.dumps(value, ensure_ascii=False, default=str)
            # What is embedded in markup (images, sounds) is no text.
            return cut(plain(_DATA_URL.sub(r"\1...", _as_text(rich))).strip("\n"), _RICH_LIMIT)
    return text or (f"[a value of type {', '.join(sorted(data))}]" if data else "")


def _as_text(value: object) -> str:
    if isinstance(value, list) and all(isinstance(line, str) for line in cast("list[object]", value)):
        return "".join(cast("list[str]", value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _joined(parts: Sequence[str], kept: Sequence[str]) -> str:
    ending = cut("\n".join(kept), LIMIT // 2)
    body = "\n".join(part.rstrip("\n") for part in parts if part.strip("\n"))
    body = cut(body, LIMIT - len(ending) - 1)
    return f"{body}\n{ending}" if body and ending else body or ending


def _note(count: int) -> str:
    return f"\n[... {count:,} characters left out ...]\n"
