"""A journal: every reader sees every event once and in order, whenever it comes; output is cut at the limit."""

import asyncio
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.events import joined
from interpreter.kernel.memory import Room
from interpreter.notebooks.outputs import NotebookOutputs
from interpreter.sessions.journal import Journal, JournalEntry, entry_of, forget_oldest

Event = dict[str, Any]
texts = st.text(st.characters(exclude_categories=["Cs"]))
outputs = st.lists(
    st.one_of(
        st.builds(
            lambda name, text: {"type": "stream", "name": name, "text": text},
            st.sampled_from(["stdout", "stderr"]),
            texts,
        ),
        st.just({"type": "display_data", "data": {"text/plain": "x"}, "metadata": {}, "transient": {}}),
    ),
    max_size=20,
)
ERROR = {"type": "error", "ename": "E", "evalue": "v" * 1_000_000, "traceback": ["t" * 1_000_000, "last"]}


def journal_of(limit: int = 1_000_000, room: Room | None = None) -> Journal:
    return Journal(limit, room or Room(1_000_000_000))


def told(entries: Iterable[JournalEntry]) -> list[Event]:
    return [json.loads(entry.json) for entry in entries]


async def all_of(journal: Journal, start: int = 0) -> list[Event]:
    return told([entry async for _, entry in journal.follow(start)])


async def test_readers_that_come_early_late_and_in_between_see_the_same() -> None:
    journal = journal_of()
    early = asyncio.create_task(all_of(journal))
    for number in range(10):
        journal.add_output({"type": "stream", "name": "stdout", "text": str(number)})
        await asyncio.sleep(0)
    between = asyncio.create_task(all_of(journal))
    journal.add({"type": "done"})
    journal.close()
    assert await early == await between == await all_of(journal) == told(journal.entries)
    assert await all_of(journal, 10) == [{"type": "done"}]


@given(outputs, st.integers(1, 5000))
def test_what_is_kept_is_a_beginning_and_some_of_stderr_and_within_the_limit(events: list[Event], limit: int) -> None:
    journal = journal_of(limit)
    for event in events:
        journal.add_output(event)
    kept = told(journal.entries)
    assert sum(len(entry.json) for entry in journal.entries if entry.type != "truncated") <= limit * 1.1
    if not journal.truncated:
        assert kept == events
        return
    place = kept.index({"type": "truncated", "limit_bytes": limit})
    assert {event["name"] for event in kept[place + 1 :]} <= {"stderr"}
    kept = kept[:place]
    # The last one may be cut.
    *whole, last = kept or [{}]
    assert whole == events[: len(whole)]
    assert last == events[len(whole)] or events[len(whole)].get("text", "").startswith(last.get("text", ""))


def test_a_text_that_is_cut_fills_what_room_there_is() -> None:
    for text in ("x" * 500_000, "\n\x1b" * 200_000, "\U0001f600x" * 100_000, "x" * 90_000 + "\x00" * 90_000):
        journal = journal_of(100_000)
        journal.add_output({"type": "stream", "name": "stdout", "text": text})
        cut = journal.entries[0]
        assert 99_700 < len(cut.json) <= 100_000
        assert text.startswith(json.loads(cut.json)["text"])


@given(st.text(st.sampled_from('au"\\\n\x00\x1bé€\U0001f600'), min_size=1), st.integers(250, 300))
def test_a_text_is_cut_between_its_characters(text: str, limit: int) -> None:
    journal = journal_of(limit)
    journal.add_output({"type": "stream", "name": "stdout", "text": text * 300})
    if len(journal.entries) == 2:
        assert (text * 300).startswith(json.loads(journal.entries[0].json)["text"])


def stream(name: str, text: str) -> Event:
    return {"type": "stream", "name": name, "text": text}


def test_a_flood_of_one_stream_does_not_hide_what_the_other_tells() -> None:
    journal = journal_of(100_000)
    for _ in range(3):
        journal.add_output(stream("stdout", "x" * 60_000))
    for line in ("no such file\n", "gave up\n"):
        journal.add_output(stream("stderr", line))
    assert b"".join(journal.printed("stderr")) == b'"no such file\\ngave up\\n"'
    # It has a share, and no more.
    for _ in range(3):
        journal.add_output(stream("stderr", "y" * 6_000))
    assert 9_000 < len(b"".join(journal.printed("stderr"))) < 10_000
    assert [entry.type for entry in journal.entries].count("truncated") == 1


def test_a_flood_of_stderr_ends_where_it_is_cut() -> None:
    journal = journal_of(10_000)
    journal.add_output(stream("stderr", "y" * 20_000))
    journal.add_output(stream("stderr", "later"))
    assert b"later" not in b"".join(journal.printed("stderr"))


def test_an_error_is_told_past_the_limit_once_and_in_short() -> None:
    journal = journal_of(1000)
    flood = stream("stdout", "x" * 3000)
    for event in (flood, ERROR, flood, ERROR):
        journal.add_output(event)
    assert [entry.type for entry in journal.entries] == ["stream", "truncated", "error"]
    last = json.loads(journal.entries[-1].json)
    assert (last["ename"], last["traceback"][-1]) == ("E", "last")
    assert len(journal.entries[-1].json) < 31_000


def test_an_error_that_is_itself_past_the_limit_is_told_in_short() -> None:
    journal = journal_of(1000)
    journal.add_output(ERROR)
    assert [entry.type for entry in journal.entries] == ["truncated", "error"]
    assert journal.error is not None
    assert journal.error["ename"] == "E"


@given(outputs)
def test_outputs_are_those_of_the_events_with_each_streams_pieces_joined(events: list[Event]) -> None:
    journal = journal_of()
    journal.add({"type": "started"})
    for event in events:
        journal.add_output(event)
    journal.add({"type": "done"})
    assert json.loads(b"".join(journal.outputs())) == joined(events)
    for name in ("stdout", "stderr"):
        text = "".join(event["text"] for event in events if event.get("name") == name)
        assert json.loads(b"".join(journal.printed(name))) == text


@given(outputs)
def test_joining_keeps_every_streams_text_and_the_order(events: list[Event]) -> None:
    result = joined([{"type": "started"}, *events, {"type": "done"}])
    for name in ("stdout", "stderr"):
        before = "".join(event["text"] for event in events if event.get("name") == name)
        assert "".join(event["text"] for event in result if event.get("name") == name) == before
    for first, second in pairwise(result):
        assert first["type"] != "stream" or first.get("name") != second.get("name")


class Ran:
    """Something that ran in a session."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal


def printed(room: Room, size: int) -> Ran:
    ran = Ran(Journal(1_000_000, room))
    ran.journal.add_output({"type": "stream", "name": "stdout", "text": "x" * size})
    ran.journal.close()
    return ran


def test_what_ended_first_makes_room_and_what_then_does_not_fit_is_cut() -> None:
    room, ended = Room(100_000), dict[str, Ran]()
    room.forget.append(lambda: forget_oldest(ended))
    for number in range(10):
        ended[str(number)] = printed(room, 40_000)
        assert room.held <= 100_000
    assert list(ended) == ["8", "9"]
    late = printed(room, 90_000)
    assert late.journal.truncated
    # Room for what tells so is always there.
    assert room.held <= 101_000
    assert list(ended) == ["9"]


async def test_what_is_forgotten_holds_its_room_until_its_last_reader_is_done() -> None:
    room = Room(100_000)
    journal = printed(room, 40_000).journal
    with journal.reading():
        journal.forget()
        assert room.held > 40_000
    assert room.held == 0


@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_one_that_comes_when_nothing_is_held_always_fits(size: int) -> None:
    room = Room(1000)
    await room.wait_for(size)
    assert room.held == size


def display(text: str, kind: str = "display_data", display_id: str | None = None) -> Event:
    transient = {} if display_id is None else {"display_id": display_id}
    return {"type": kind, "data": {"text/html": text}, "metadata": {}, "transient": transient}


def printed_text(text: str, name: str = "stdout") -> Event:
    return {"type": "stream", "name": name, "text": text}


CLEAR = {"type": "clear_output", "wait": True}


def texts_of(journal: Journal) -> list[str]:
    events = json.loads(b"".join(journal.outputs()))
    return [str(event.get("text") or event.get("data", {}).get("text/html", "")).strip() for event in events]


async def test_a_picture_that_is_drawn_anew_all_the_time_ends_on_the_last_one() -> None:
    room = Room(1_000_000_000)
    journal = journal_of(10_000_000, room)
    follower = asyncio.create_task(all_of(journal))
    for number in range(600):
        journal.add_output(CLEAR)
        journal.add_output(display(f"{number}" + " " * 300_000))
        await asyncio.sleep(0)
        assert room.held < 13_000_000
    journal.add_output(printed_text("final"))
    journal.close()
    assert not journal.truncated
    assert texts_of(journal) == ["", "599", "final"]
    seen = [event["data"]["text/html"].strip() for event in await follower if event["type"] == "display_data"]
    # Whoever keeps up sees all.
    assert seen == [str(number) for number in range(600)]
    journal.forget()
    assert room.held == 0


@pytest.mark.parametrize("wait", [True, False], ids=["wait", "at once"])
def test_what_is_cleared_after_the_limit_makes_room_again(*, wait: bool) -> None:
    journal = journal_of(10_000)
    for number in range(20):
        journal.add_output(display(f"{number}" + "x" * 1000))
    assert journal.truncated
    journal.add_output({"type": "clear_output", "wait": wait})
    journal.add_output(printed_text("after"))
    journal.close()
    assert not journal.truncated
    assert texts_of(journal)[-1] == "after"
    assert sum(entry.size for entry in journal.entries) < 10_000


def test_a_display_that_is_updated_for_an_hour_leaves_room_for_what_comes_after() -> None:
    journal = journal_of(100_000)
    journal.add_output(display("begins", display_id="bar"))
    for number in range(36_000):
        journal.add_output(display(f"{number}", "update_display_data", "bar"))
        assert len(journal.entries) < 200
    journal.add_output(printed_text("result"))
    journal.close()
    assert texts_of(journal) == ["begins", "35999", "result"]


@pytest.mark.parametrize(
    "line", ["\rstep {}", "\r\x1b[32mstep {}\x1b[0m", "\rstep {}\rstep {}"], ids=["plain", "coloured", "twice"]
)
def test_a_line_that_is_written_over_for_an_hour_leaves_room_for_what_comes_after(line: str) -> None:
    journal = journal_of(100_000)
    journal.add_output(printed_text("before\n", "stderr"))
    for number in range(36_000):
        journal.add_output(printed_text(line.format(f"{number:5}", f"{number:5}"), "stderr"))
    journal.add_output(printed_text("\n", "stderr"))
    journal.add_output(printed_text("result"))
    journal.close()
    assert not journal.truncated
    shown, result = texts_of(journal)
    assert result == "result"
    assert shown.startswith("before\n")
    assert "35999" in shown.split("\r")[-1]
    assert len(shown) < 100


@pytest.mark.parametrize(
    "pieces",
    [["\rlong line"] + ["\rshort"] * 9, ["\rup\x1b[A"] * 10, ["\rback\b\b"] * 10, ["line\n"] * 10, ["\rline\n"] * 10],
    ids=["shorter", "up", "back", "lines", "lines that begin anew"],
)
def test_what_can_still_be_seen_counts(pieces: list[str]) -> None:
    journal = journal_of(sum(map(len, pieces)) + 10 * 245)
    for _ in range(2):
        for piece in pieces:
            journal.add_output(printed_text(piece))
    assert journal.truncated
    text = "".join(event.get("text", "") for event in told(journal.entries))
    assert len(text) > 20
    assert ("".join(pieces) * 2).startswith(text)


def test_what_is_little_is_there_as_it_came() -> None:
    events = [printed_text("a\r"), printed_text("\rb"), CLEAR, display("x", display_id="i"), CLEAR, printed_text("c")]
    journal = journal_of()
    for event in events:
        journal.add_output(event)
    journal.close()
    assert told(journal.entries) == events


SHOWN = st.lists(
    st.one_of(
        st.builds(printed_text, st.text("ab\r\n\b", max_size=4), st.sampled_from(["stdout", "stderr"])),
        st.builds(
            display,
            st.text("xy", max_size=3),
            st.sampled_from(["display_data", "update_display_data"]),
            st.sampled_from([None, "i", "j"]),
        ),
        st.builds(lambda wait: {"type": "clear_output", "wait": wait}, st.booleans()),
    ),
    max_size=30,
)


def seen(events: list[Event]) -> list[dict[str, Any]]:
    """What a front end shows of events in the end, with lines as a terminal has them."""
    outputs = NotebookOutputs(10**9, Room(10**9))
    for event in events:
        outputs.add(0, entry_of(event))
    shown = outputs.finish().get(0, [])
    for output in shown:
        if "text" in output:
            output["text"] = [overwritten(line) for line in output["text"].split("\n")]
    return shown


def overwritten(line: str) -> str:
    if "\b" in line:
        return line
    text = ""
    for part in line.split("\r"):
        text = part + text[len(part) :]
    return text


@given(SHOWN)
def test_thinned_out_or_not_a_front_end_shows_the_same(events: list[Event]) -> None:
    journal = Journal(10_000_000, Room(10**9))
    thinned = Journal(10_000_000, Room(10**9))
    for event in events:
        journal.add_output(event)
        thinned.add_output(event)
        # As it does by itself when much is there that nobody sees.
        thinned._thin_out()  # pyright: ignore[reportPrivateUsage]
    assert seen(told(thinned.entries)) == seen(events)
    assert seen(told(journal.entries)) == seen(events)


def test_what_was_printed_since_an_event_is_found_by_its_number_when_much_has_gone() -> None:
    journal = journal_of(10_000)
    for number in range(400):
        journal.add_output({"type": "stream", "name": "stdout", "text": f"\r{number:040}"})
    place = journal.next
    journal.add_output({"type": "stream", "name": "stdout", "text": "\nend"})
    assert len(journal.entries) < place
    assert b"".join(journal.printed("stdout", place, journal.next)) == b'"\\nend"'
    assert b"".join(journal.printed("stdout", place + 1)) == b'""'
