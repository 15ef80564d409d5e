"""Outputs of executions as those of a notebook: streams joined, displays updated, what was cleared left out."""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final, cast

from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.outputs import MimeBundle
from interpreter.sessions.journal import Event, short_error, size_of

_JSON_TYPE: Final = re.compile(r"application/(.*\+)?json")


@dataclass(slots=True)
class _Entry:
    """One output. ``pieces`` are a stream's text, ``display_id`` says under which name others may change it."""

    output: dict[str, Any]
    pieces: list[str] = field(default_factory=list[str])
    display_id: str | None = None


class NotebookOutputs:
    """The outputs of all cells of a notebook that runs. ``limit`` is in bytes, for all of them together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._cells: dict[int, list[_Entry]] = {}
        self._shown: dict[str, tuple[MimeBundle, dict[str, Any]]] = {}
        self._clear_next: set[int] = set()
        self._full = False
        self._has_last_error = False
        self.truncated = False

    def add(self, cell: int, event: Event) -> Event | None:
        """Take an output of a cell; returns what readers are to see of it: itself, that there is too much, or None."""
        if self._full:
            if event["type"] != "error" or self._has_last_error:
                return None
            # It ends the notebook, mostly; how is told also when there is no room for more.
            self._has_last_error = True
            event = short_error(event)
            self._take(cell, event)
            return event
        self._size += size_of(event)
        if self._size > self._limit:
            self._full = True
            event = {"type": "truncated", "limit_bytes": self._limit}
        self._take(cell, event)
        return event

    def finish(self) -> dict[int, list[dict[str, Any]]]:
        """What every cell with outputs shows in the end. Takes time that grows with the outputs."""
        finished: dict[int, list[dict[str, Any]]] = {}
        size = 0
        for cell, entries in self._cells.items():
            outputs = finished[cell] = []
            for entry in entries:
                output = self._finished(entry)
                # Again: one update of a display shows up wherever that was displayed. Errors can only be as they came.
                size += size_of(output) if output["output_type"] != "error" else 0
                if size > self._limit:
                    self.truncated = True
                    outputs.append(_notice(self._limit))
                    return finished
                outputs.append(output)
        return finished

    def _take(self, cell: int, event: Event) -> None:
        entries = self._cells.setdefault(cell, [])
        kind = event["type"]
        if kind == "truncated":
            self.truncated = True
            entries.append(_Entry(_notice(event["limit_bytes"])))
            return
        if kind not in OUTPUT_TYPES:
            return
        display_id = event.get("transient", {}).get("display_id")
        display_id = display_id if isinstance(display_id, str) and display_id else None
        if display_id is not None and (kind == "display_data" or display_id in self._shown):
            self._shown[display_id] = (event["data"], event["metadata"])
        if kind == "update_display_data":
            return
        if kind == "clear_output":
            if event["wait"]:
                self._clear_next.add(cell)
            else:
                entries.clear()
            return
        if cell in self._clear_next:
            self._clear_next.discard(cell)
            entries.clear()
        last = entries[-1] if entries else None
        if kind == "stream" and last is not None and last.output.get("name") == event["name"] and last.pieces:
            last.pieces.append(event["text"])
            return
        entries.append(_entry(event, display_id))

    def _finished(self, entry: _Entry) -> dict[str, Any]:
        if entry.pieces:
            return {**entry.output, "text": "".join(entry.pieces)}
        if entry.display_id is not None:
            # As it was shown last, wherever it was shown.
            data, metadata = self._shown[entry.display_id]
            return {**entry.output, "data": _bundle(data), "metadata": metadata}
        return entry.output


def _entry(event: Event, display_id: str | None) -> _Entry:
    match event["type"]:
        case "stream":
            output = {"output_type": "stream", "name": event["name"]}
            return _Entry(output, [event["text"]])
        case "error":
            output = {key: event[key] for key in ("ename", "evalue", "traceback")}
            return _Entry({"output_type": "error", **output})
        case kind:
            output = {"output_type": kind, "data": _bundle(event["data"]), "metadata": event["metadata"]}
            if kind == "execute_result":
                output["execution_count"] = max(event["execution_count"], 0)
            return _Entry(output, display_id=display_id)


def _bundle(data: MimeBundle) -> MimeBundle:
    # A kernel may send anything; a notebook has text, or a list of texts, unless the type is one of JSON.
    return {kind: value if _JSON_TYPE.fullmatch(kind) else _content(value) for kind, value in data.items()}


def _content(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in cast("list[object]", value)):
        return "".join(cast("list[str]", value))
    return json.dumps(value, ensure_ascii=False)


def _notice(limit: int) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stderr", "text": f"[Output past {limit} bytes was left out.]\n"}
