"""Outputs of executions as those of a notebook: streams joined, displays updated, what was cleared left out."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, cast

from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.limits import dump_json, parse_json
from interpreter.kernel.memory import Room
from interpreter.kernel.outputs import MimeBundle
from interpreter.sessions.journal import JournalEntry, short_error

_JSON_TYPE: Final = re.compile(r"application/(.*\+)?json")


@dataclass(slots=True)
class _Entry:
    """One output as its events' JSON: those of a stream, or one. ``display_id``: by which name others may change it."""

    kind: str
    events: list[JournalEntry]
    stream: str | None = None
    display_id: str | None = None


class NotebookOutputs:
    """The outputs of all cells of a notebook that runs. ``limit`` is in bytes, for all that they show together.

    They take ``room`` twice, as events and as what the notebook has of them in the end, until they are closed.
    """

    def __init__(self, limit: int, room: Room) -> None:
        self._limit = limit
        self._room = room
        self._size = 0
        self._cells: dict[int, list[_Entry]] = {}
        self._shown: dict[str, JournalEntry] = {}
        self._displayed: dict[str, int] = {}
        """How often something is displayed under a name."""
        self._clear_next: set[int] = set()
        self._full = False
        self._is_cut = False
        self._has_last_error = False

    @property
    def truncated(self) -> bool:
        """Whether something is missing of what they show."""
        return self._is_cut or any(entry.kind == "truncated" for entries in self._cells.values() for entry in entries)

    def add(self, cell: int, event: JournalEntry) -> JournalEntry | None:
        """Take an output of a cell; returns what readers are to see of it: itself, that there is too much, or None."""
        if event.type == "clear_output":
            if event.wait:
                self._clear_next.add(cell)
            else:
                self._clear(cell)
            return event
        if cell in self._clear_next and event.type in OUTPUT_TYPES and event.type != "update_display_data":
            self._clear_next.discard(cell)
            self._clear(cell)
        if self._full:
            if event.type != "error" or self._has_last_error:
                return None
            # It ends the notebook, mostly; how is told also when there is no room for more.
            self._has_last_error = True
            event = JournalEntry(event.type, dump_json(short_error(parse_json(event.json))))
        elif self._size + event.size > self._limit or not self._room.fits(2 * event.size):
            self._full = True
            event = JournalEntry("truncated", dump_json({"type": "truncated", "limit_bytes": self._limit}))
        self._count(event.size)
        self._take(cell, event)
        return event

    def close(self) -> None:
        """Nobody wants them any more."""
        self._room.give_back(2 * self._size)
        self._size = 0

    def finish(self) -> dict[int, list[dict[str, Any]]]:
        """What every cell with outputs shows in the end. Takes time that grows with the outputs."""
        finished: dict[int, list[dict[str, Any]]] = {}
        size = 0
        for cell, entries in self._cells.items():
            outputs = finished[cell] = []
            for entry in entries:
                # Again: one update of a display shows up wherever that was displayed. Errors can only be as they came.
                shown = self._shown.get(entry.display_id or "")
                size += sum(one.size for one in ([shown] if shown else entry.events)) if entry.kind != "error" else 0
                if size > self._limit:
                    self._is_cut = True
                    outputs.append(_notice(self._limit))
                    return finished
                outputs.append(_output(entry, shown))
        return finished

    def _count(self, size: int) -> None:
        self._size += size
        if size > 0:
            self._room.take(2 * size)
        else:
            self._room.give_back(-2 * size)

    def _show(self, display_id: str | None, event: JournalEntry | None, update: JournalEntry | None) -> None:
        """What is displayed under a name is ``event`` from now on, or nothing; ``update`` has come and is counted."""
        if display_id is None or event is None:
            self._count(-update.size if update else 0)
            return
        before = self._shown.get(display_id)
        if before is not None and before.type == "update_display_data":
            self._count(-before.size)
        self._shown[display_id] = event

    def _clear(self, cell: int) -> None:
        for entry in self._cells.pop(cell, []):
            self._count(-sum(event.size for event in entry.events))
            if entry.display_id is not None:
                self._forget_display(entry.display_id)
            # There is room again.
            self._full = False

    def _forget_display(self, display_id: str) -> None:
        self._displayed[display_id] -= 1
        if not self._displayed[display_id]:
            del self._displayed[display_id]
            shown = self._shown.pop(display_id)
            if shown.type == "update_display_data":
                self._count(-shown.size)

    def _take(self, cell: int, event: JournalEntry) -> None:
        entries = self._cells.setdefault(cell, [])
        if event.type == "truncated":
            entries.append(_Entry("truncated", [event]))
            return
        display_id = event.display_id
        if event.type == "update_display_data":
            # Of what is displayed nowhere it changes nothing.
            self._show(display_id, event if display_id in self._shown else None, event)
            return
        if event.type not in OUTPUT_TYPES:
            self._count(-event.size)
            return
        if display_id is not None:
            self._displayed[display_id] = self._displayed.get(display_id, 0) + 1
            self._show(display_id, event, None)
        stream = event.stream
        if stream is not None and entries and entries[-1].stream == stream:
            entries[-1].events.append(event)
        else:
            entries.append(_Entry(event.type, [event], stream, display_id))


def _output(entry: _Entry, shown: JournalEntry | None) -> dict[str, Any]:
    """As notebooks have it; what has been changed as it was ``shown`` last, wherever that was."""
    if entry.stream is not None:
        text = b"".join([b'"', *(event.text(entry.stream) for event in entry.events), b'"'])
        return {"output_type": "stream", "name": entry.stream, "text": parse_json(text)}
    event = parse_json(entry.events[0].json)
    if entry.kind == "truncated":
        return _notice(event["limit_bytes"])
    if entry.kind == "error":
        return {"output_type": "error", **{key: event[key] for key in ("ename", "evalue", "traceback")}}
    last = parse_json(shown.json) if shown is not None else event
    output = {"output_type": entry.kind, "data": _bundle(last["data"]), "metadata": last["metadata"]}
    if entry.kind == "execute_result":
        output["execution_count"] = max(event["execution_count"], 0)
    return output


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
