"""Server-sent events: the same events however the bytes are cut and however lines end."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.client.stream import EventParser, ServerEvent

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\n"), max_size=20)
NAMES = TEXT.filter(bool)
IDS = TEXT.filter(lambda text: "\0" not in text)
ENDS = st.sampled_from(["\r", "\n", "\r\n"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[ServerEvent]]:
    """The bytes of a stream, and the events in it."""
    text, events, last = draw(st.sampled_from(["", "\ufeff"])), list[ServerEvent](), ""

    def line(content: str) -> None:
        nonlocal text
        # What would be CR and LF of two empty lines is one line's end.
        ends = ENDS.filter(lambda end: not (text.endswith("\r") and not content and end.startswith("\n")))
        text += content + draw(ends)

    for _ in range(draw(st.integers(0, 5))):
        if draw(st.booleans()):
            line(":" + draw(TEXT))
        name = draw(st.none() | NAMES)
        if name is not None:
            line(f"event: {name}")
        if draw(st.booleans()):
            last = draw(IDS)
            line(f"id: {last}")
        data = draw(st.lists(TEXT, max_size=4))
        for part in data:
            line(f"data: {part}")
        line("")
        if data:
            events.append(ServerEvent("\n".join(data), name or "message", last))
    return text.encode(), events


def parse(data: bytes, cuts: list[int]) -> list[ServerEvent]:
    parser = EventParser()
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[start:end] for start, end in pairwise(places)]
    return [event for piece in pieces for event in parser.feed(piece)]


@given(streams(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cutting_gives_the_same_events(stream: tuple[bytes, list[ServerEvent]], cuts: list[int]) -> None:
    data, events = stream
    assert parse(data, cuts) == events


@given(streams())
def test_one_byte_at_a_time(stream: tuple[bytes, list[ServerEvent]]) -> None:
    data, events = stream
    assert parse(data, list(range(len(data)))) == events


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_any_bytes_give_the_same_however_cut(data: bytes, cuts: list[int]) -> None:
    assert parse(data, cuts) == parse(data, [])


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [ServerEvent("a")]),
        (b"data:a\n\n", [ServerEvent("a")]),
        (b"data:  a\n\n", [ServerEvent(" a")]),
        (b"data\n\n", [ServerEvent("")]),
        (b"data: a\ndata: b\n\n", [ServerEvent("a\nb")]),
        (b"data: a: b\n\n", [ServerEvent("a: b")]),
        (b": keep-alive\n\ndata: a\n\n", [ServerEvent("a")]),
        (b"event: x\n\ndata: a\n\n", [ServerEvent("a")]),
        (b"id: 1\ndata: a\n\ndata: b\n\n", [ServerEvent("a", id="1"), ServerEvent("b", id="1")]),
        (b"id: 1\0\ndata: a\n\n", [ServerEvent("a")]),
        (b"retry: 10\nnonsense\n x: y\ndata: a\n\n", [ServerEvent("a")]),
        (b"data: a\n", []),
        (b"data: a", []),
        (b"data: a\r\r", [ServerEvent("a")]),
        (b"data: a\r\n\r\n", [ServerEvent("a")]),
        ("data: a\u2028b\x85c\x0bd\n\n".encode(), [ServerEvent("a\u2028b\x85c\x0bd")]),
        (b"data: \xff\xe2\x82\n\n", [ServerEvent("\ufffd\ufffd")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [ServerEvent("a")]),
    ],
)
def test_forms_of_lines(data: bytes, events: list[ServerEvent]) -> None:
    assert parse(data, []) == events


def test_a_long_line_in_small_pieces_is_not_copied_with_each() -> None:
    parser = EventParser()
    parser.feed(b"data: ")
    for _ in range(20_000):
        assert parser.feed(b"x" * 500) == []
    (event,) = parser.feed(b"\n\n")
    assert len(event.data) == 10_000_000
