"""Results put together from the events of a stream."""

from collections.abc import Sequence

from interpreter.client.models import CommandResult, Event, ExecutionResult
from interpreter.events import joined


def execution_result(events: Sequence[Event], context_id: str) -> ExecutionResult:
    """The result of an execution all of whose events are there, the last of them ``done``."""
    return ExecutionResult.model_validate({"context_id": context_id, **_done(events), "outputs": joined(events)})


def command_result(events: Sequence[Event]) -> CommandResult:
    """The result of a command all of whose events are there, the last of them ``done``."""
    texts: dict[str, list[str]] = {"stdout": [], "stderr": []}
    for event in events:
        if event["type"] == "stream":
            texts.setdefault(event["name"], []).append(event["text"])
    return CommandResult.model_validate({**_done(events), **{name: "".join(pieces) for name, pieces in texts.items()}})


def _done(events: Sequence[Event]) -> Event:
    return next((event for event in reversed(events) if event["type"] == "done"), Event())
