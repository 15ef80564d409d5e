"""What a model reads: results as short text and images. Pure functions."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_types import ContentBlock, ImageContent, TextContent

LIMIT: Final = 20_000
"""Characters of text in one answer, at most."""
IMAGE_TYPES: Final = ("image/png", "image/jpeg")
_ERROR_LIMIT: Final = 6_000
_FRAMES: Final = 4
_MAX_IMAGES: Final = 10
# Colours and cursor movements (CSI), titles and links (OSC), and the two-character sequences.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_=>])")
_OTHER_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FRAME_LINE: Final = re.compile(r"(?:Cell In\[|Input In ?\[|File )")
_CELL_LINE: Final = re.compile(r"(?:Cell In\[|Input In ?\[)")


def plain(text: str) -> str:
    """Text without escape sequences; of a line that was written over (a progress bar), only what stood last."""
    text = _ESCAPES.sub("", text)
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _OTHER_CONTROLS.sub("", text)


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


def execution_content(outputs: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> list[ContentBlock]:
    """The outputs of code as content: one text, in the order in which things came, then the images.

    ``notes`` are the service's own words on how it ended; they and the exception are never cut away.
    """
    parts: list[str] = []
    errors: list[str] = []
    images: list[ContentBlock] = []
    for output in _merged(outputs):
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
                image = image_of(data)
                if image is not None:
                    images.append(image)
                elif text := _text_of(data):
                    parts.append(text)
            case _:
                pass
    if len(images) > _MAX_IMAGES:
        notes = [*notes, f"[{len(images) - _MAX_IMAGES} more images were left out]"]
        images = images[:_MAX_IMAGES]
    return [TextContent(type="text", text=text), *images] if (text := _joined(parts, [*errors, *notes])) else images


def command_text(stdout: str, stderr: str, notes: Sequence[str] = ()) -> str:
    """What a command printed, as text."""
    parts = [plain(stdout)] if stdout else []
    if stderr:
        parts.append(f"[stderr]\n{plain(stderr)}")
    return _joined(parts, notes)


def image_of(data: Mapping[str, Any]) -> ImageContent | None:
    """The image in a mime bundle, when it has one that every client shows."""
    for mime_type in IMAGE_TYPES:
        encoded = data.get(mime_type)
        if isinstance(encoded, str):
            return ImageContent(type="image", data="".join(encoded.split()), mime_type=mime_type)
    return None


def _merged(outputs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Outputs with neighbouring writes to one stream joined, and what was cleared gone."""
    groups: list[list[Mapping[str, Any]]] = []
    clear_next = False
    for output in outputs:
        if clear_next or (output.get("type") == "clear_output" and not output.get("wait")):
            groups.clear()
        clear_next = output.get("type") == "clear_output" and bool(output.get("wait"))
        if output.get("type") == "clear_output":
            continue
        first: Mapping[str, Any] = groups[-1][0] if groups else {}
        if output.get("type") == first.get("type") == "stream" and output.get("name") == first.get("name"):
            groups[-1].append(output)
        else:
            groups.append([output])
    return [
        {**group[0], "text": "".join(str(output.get("text", "")) for output in group)} if len(group) > 1 else group[0]
        for group in groups
    ]


def _text_of(data: Mapping[str, Any]) -> str:
    for mime_type in ("text/plain", "text/markdown", "text/latex", "application/json", "text/html"):
        value = data.get(mime_type)
        if value is not None:
            return plain(value if isinstance(value, str) else repr(value))
    return f"[a value of type {', '.join(sorted(data))}]" if data else ""


def _joined(parts: Sequence[str], kept: Sequence[str]) -> str:
    ending = cut("\n".join(kept), LIMIT // 2)
    body = "\n".join(part.rstrip("\n") for part in parts if part.strip("\n"))
    body = cut(body, LIMIT - len(ending) - 1)
    return f"{body}\n{ending}" if body and ending else body or ending


def _note(count: int) -> str:
    return f"\n[... {count:,} characters left out ...]\n"
