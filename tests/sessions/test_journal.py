"""A journal: every reader sees every event once and in order, whenever it comes; output is cut at the limit."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.events import joined
from interpreter.sessions.journal import Event, Journal, size_of

outputs = st.lists(
    st.one_of(
        st.builds(
            lambda name, text: {"type": "stream", "name": name, "text": text},
            st.sampled_from(["stdout", "stderr"]),
            st.text(),
        ),
        st.just({"type": "display_data", "data": {"text/plain": "x"}, "metadata": {}, "transient": {}}),
    ),
    max_size=20,
)


async def all_of(journal: Journal, start: int = 0) -> list[Event]:
    return [event async for _, event in journal.follow(start)]


async def test_readers_that_come_early_late_and_in_between_see_the_same() -> None:
    journal = Journal(1_000_000)
    early = asyncio.create_task(all_of(journal))
    for number in range(10):
        journal.add_output({"type": "stream", "name": "stdout", "text": str(number)})
        await asyncio.sleep(0)
    between = asyncio.create_task(all_of(journal))
    journal.add({"type": "done"})
    journal.close()
    assert await early == await between == await all_of(journal) == journal.events
    assert await all_of(journal, 10) == [{"type": "done"}]


@given(outputs, st.integers(1, 5000))
def test_what_is_kept_is_a_beginning_and_within_the_limit(events: list[Event], limit: int) -> None:
    journal = Journal(limit)
    for event in events:
        journal.add_output(event)
    texts = "".join(event["text"] for event in events if "text" in event)
    kept = "".join(event["text"] for event in journal.events if "text" in event)
    assert len(kept.encode("utf-8", "replace")) <= limit
    if journal.truncated:
        assert journal.events[-1] == {"type": "truncated", "limit_bytes": limit}
        assert texts.startswith("".join(kept)) or len({event.get("name") for event in events}) > 1
    else:
        assert journal.events == events


def test_an_error_is_told_past_the_limit_once_and_in_short() -> None:
    journal = Journal(1000)
    stream = {"type": "stream", "name": "stdout", "text": "x" * 3000}
    error = {"type": "error", "ename": "E", "evalue": "v" * 1_000_000, "traceback": ["t" * 1_000_000, "last"]}
    for event in (stream, error, stream, error):
        journal.add_output(dict(event))
    assert [event["type"] for event in journal.events] == ["stream", "truncated", "error"]
    assert (journal.events[-1]["ename"], journal.events[-1]["traceback"][-1]) == ("E", "last")
    assert size_of(journal.events[-1]) < 30_000


def test_an_error_that_is_itself_past_the_limit_is_told_in_short() -> None:
    journal = Journal(1000)
    journal.add_output({"type": "error", "ename": "E", "evalue": "v" * 5000, "traceback": []})
    assert [event["type"] for event in journal.events] == ["truncated", "error"]


def test_one_output_that_is_cut_counts_as_all_the_room_that_there_is() -> None:
    journal = Journal(1000)
    journal.add_output({"type": "stream", "name": "stdout", "text": "x" * 5000})
    assert (journal.truncated, journal.size) == (True, 1000)


@pytest.mark.parametrize("value", [{"k" * 10_000: ""}, {"a": ["x" * 10_000]}, [{"k" * 10_000: 1}]])
def test_all_that_takes_room_counts(value: object) -> None:
    assert size_of(value) >= 10_000


@given(outputs)
def test_joining_keeps_every_streams_text_and_the_order(events: list[Event]) -> None:
    result = joined([{"type": "started"}, *events, {"type": "done"}])
    for name in ("stdout", "stderr"):
        before = "".join(event["text"] for event in events if event.get("name") == name)
        assert "".join(event["text"] for event in result if event.get("name") == name) == before
    for first, second in pairwise(result):
        assert first["type"] != "stream" or first.get("name") != second.get("name")
