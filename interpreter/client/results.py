"""Results put together from the events of a stream."""

from collections.abc import Iterable
from typing import Final

from interpreter.client.models import CommandResult, Event, ExecutionResult

_OUTPUTS: Final = frozenset(
    {
        *("stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"),
        "truncated",
    }
)


def execution_result(events: Iterable[Event], context_id: str) -> ExecutionResult:
    """The result of an execution all of whose events are there, the last of them ``done``."""
    outputs, done = _split(events)
    return ExecutionResult.model_validate({"context_id": context_id, **done, "outputs": _joined(outputs)})


def command_result(events: Iterable[Event]) -> CommandResult:
    """The result of a command all of whose events are there, the last of them ``done``."""
    outputs, done = _split(events)
    texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
    for output in outputs:
        if output["type"] == "stream":
            texts.setdefault(output["name"], []).append(output["text"])
    return CommandResult.model_validate({**done, **{name: "".join(pieces) for name, pieces in texts.items()}})


def _split(events: Iterable[Event]) -> tuple[list[Event], Event]:
    outputs: list[Event] = []
    done: Event = {}
    for event in events:
        if event["type"] == "done":
            done = event
        elif event["type"] in _OUTPUTS:
            outputs.append(event)
    return outputs, done


def _joined(outputs: list[Event]) -> list[Event]:
    # Text of one stream that came in pieces is one output, as in a notebook.
    joined: list[Event] = []
    pieces: list[str] = []
    for output in outputs:
        follows = bool(pieces) and output["type"] == "stream" and output["name"] == joined[-1]["name"]
        if not follows:
            _end_stream(joined, pieces)
            joined.append(dict(output))
        if output["type"] == "stream":
            pieces.append(output["text"])
    _end_stream(joined, pieces)
    return joined


def _end_stream(joined: list[Event], pieces: list[str]) -> None:
    if pieces:
        joined[-1]["text"] = "".join(pieces)
        pieces.clear()
