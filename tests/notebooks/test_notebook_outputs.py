"""Outputs of a notebook's cells: joined, updated, cleared, bounded, and valid whatever a kernel sends."""

from typing import Any

import hypothesis.strategies as st
import nbformat
from hypothesis import given
from nbclient import NotebookClient

from interpreter.kernel.limits import dump_json
from interpreter.kernel.memory import Room
from interpreter.notebooks.outputs import NotebookOutputs
from interpreter.sessions.journal import JournalEntry, entry_of

TEXTS = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS, lambda parts: st.lists(parts), max_leaves=5
)
TYPES = st.sampled_from(["text/plain", "image/png", "application/json", "application/vnd.x+json", "application/x", ""])
BUNDLES = st.dictionaries(TYPES, JSON, max_size=3)
TRANSIENT = st.sampled_from([{}, {"display_id": "a"}, {"display_id": "b"}, {"display_id": ["a"]}, {"display_id": ""}])
STREAMS = st.builds(
    lambda name, text: {"type": "stream", "name": name, "text": text}, st.sampled_from(["stdout", "stderr"]), TEXTS
)
CLEARS = st.builds(lambda wait: {"type": "clear_output", "wait": wait}, st.booleans())


def shows(bundles: st.SearchStrategy[Any], transient: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda kind, data, transient: {"type": kind, "data": data, "metadata": {}, "transient": transient},
        st.sampled_from(["display_data", "update_display_data"]),
        bundles,
        transient,
    )


RESULTS = st.builds(
    lambda count, data: {"type": "execute_result", "execution_count": count, "data": data, "metadata": {}},
    st.integers(),
    BUNDLES,
)
ERRORS = st.builds(
    lambda name: {"type": "error", "ename": name, "evalue": name, "traceback": [name]},
    TEXTS,
)
EVENTS = st.lists(st.tuples(st.integers(0, 2), STREAMS | CLEARS | shows(BUNDLES, TRANSIENT) | RESULTS | ERRORS))


def entry(event: dict[str, Any]) -> JournalEntry:
    return entry_of(event)


def unbounded(limit: int) -> NotebookOutputs:
    return NotebookOutputs(limit, Room(10**9))


def finished(events: list[tuple[int, dict[str, Any]]], limit: int = 10**6) -> list[list[dict[str, Any]]]:
    outputs = unbounded(limit)
    for cell, event in events:
        outputs.add(cell, entry(event))
    made = outputs.finish()
    return [made.get(cell, []) for cell in range(3)]


@given(EVENTS, st.integers(0, 5000))
def test_every_output_is_valid(events: list[tuple[int, dict[str, Any]]], limit: int) -> None:
    cells = [nbformat.v4.new_code_cell("", outputs=outputs) for outputs in finished(events, limit)]
    nbformat.validate(nbformat.v4.new_notebook(cells=cells))


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With pieces of one stream that follow each other put together, as a notebook shows them."""
    whole: list[dict[str, Any]] = []
    for output in outputs:
        if whole and output.get("name") and whole[-1].get("name") == output["name"]:
            whole[-1] = {**whole[-1], "text": whole[-1]["text"] + output["text"]}
        else:
            whole.append(dict(output))
    return whole


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            STREAMS
            | CLEARS
            | shows(
                st.dictionaries(TYPES.filter(bool), TEXTS, min_size=1),
                TRANSIENT.filter(lambda one: one.get("display_id") != ["a"]),
            ),
        )
    )
)
def test_the_outputs_are_those_of_nbclient(events: list[tuple[int, dict[str, Any]]]) -> None:
    events.sort(key=lambda one: one[0])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell() for _ in range(3)])
    client = NotebookClient(notebook)
    cell_before = -1
    for cell, event in events:
        if cell != cell_before:
            client.clear_before_next_output = False
        cell_before = cell
        content = {key: value for key, value in event.items() if key != "type"}
        message = {
            "msg_type": event["type"],
            "content": content,
            "parent_header": {"msg_id": "1"},
            "header": {"msg_type": event["type"]},
        }
        client.process_message(message, notebook.cells[cell], cell)
    assert finished(events) == [joined(cell.outputs) for cell in notebook.cells]


def show(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "data": {"text/plain": text}, "metadata": {}, "transient": {"display_id": "a"}}


def test_an_update_shows_wherever_that_was_displayed() -> None:
    events = [(0, show("display_data", "1")), (1, show("display_data", "2")), (2, show("update_display_data", "3"))]
    first, second, third = finished(events)
    assert (first[0]["data"], second[0]["data"], third) == ({"text/plain": "3"}, {"text/plain": "3"}, [])


def test_one_update_of_many_displays_stays_within_the_limit() -> None:
    outputs = unbounded(100_000)
    for _ in range(50):
        outputs.add(0, entry(show("display_data", "")))
    outputs.add(0, entry(show("update_display_data", "x" * 40_000)))
    (made,) = outputs.finish().values()
    assert outputs.truncated
    assert sum(len(output.get("data", {}).get("text/plain", "")) for output in made) <= 100_000
    assert made[-1]["text"] == "[Output past 100000 bytes was left out.]\n"


def test_past_the_limit_readers_are_told_once() -> None:
    outputs = unbounded(1100)
    event = {"type": "stream", "name": "stdout", "text": "x" * 300}
    told = [outputs.add(0, entry(event)) for _ in range(6)]
    assert [one and one.type for one in told] == ["stream", "stream", "truncated", None, None, None]
    assert outputs.truncated


def test_the_error_that_ends_a_notebook_is_told_past_the_limit_once_and_in_short() -> None:
    outputs = unbounded(1100)
    stream = {"type": "stream", "name": "stdout", "text": "x" * 3000}
    error = {"type": "error", "ename": "E", "evalue": "v" * 1_000_000, "traceback": ["t" * 1_000_000, "last"]}
    told = [outputs.add(0, entry(event)) for event in (stream, error, error, stream)]
    assert [one and one.type for one in told] == ["truncated", "error", None, None]
    (made,) = outputs.finish().values()
    assert (made[-1]["output_type"], made[-1]["ename"], made[-1]["traceback"][-1]) == ("error", "E", "last")
    assert len(dump_json(made[-1])) < 31_000


def test_what_does_not_fit_into_the_sessions_room_is_left_out() -> None:
    room = Room(10_000)
    outputs = NotebookOutputs(10**9, room)
    room.take(4000)
    stream = {"type": "stream", "name": "stdout", "text": "x" * 1000}
    told = [outputs.add(0, entry(stream)) for _ in range(5)]
    assert [one and one.type for one in told] == ["stream", "stream", "truncated", None, None]
    outputs.close()
    assert room.held == 4000
