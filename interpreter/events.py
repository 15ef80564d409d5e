"""The events of what runs, as the service tells them and its clients read them."""

from collections.abc import Iterable
from typing import Any, Final

OUTPUT_TYPES: Final = frozenset(
    {"stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"}
)
TOLD_TYPES: Final = OUTPUT_TYPES | {"truncated"}
"""What a service tells as output: also that some of it was left out."""


def joined(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs among a service's events, with pieces of one stream that follow each other put together."""
    outputs: list[dict[str, Any]] = []
    pieces: list[str] = []
    for event in events:
        if event["type"] not in TOLD_TYPES:
            continue
        if event["type"] == "stream" and outputs and outputs[-1].get("name") == event["name"]:
            pieces.append(event["text"])
            continue
        _flush(outputs, pieces)
        outputs.append(dict(event))
        if event["type"] == "stream":
            pieces.append(event["text"])
    _flush(outputs, pieces)
    return outputs


def _flush(outputs: list[dict[str, Any]], pieces: list[str]) -> None:
    if pieces:
        outputs[-1]["text"] = "".join(pieces)
        pieces.clear()
