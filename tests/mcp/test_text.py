"""What a model reads: the shaping of results, without a service."""

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.mcp.text import LIMIT, command_text, cut, execution_text, plain, shown, traceback_text

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
OUTPUTS = st.one_of(
    st.builds(
        lambda name, text: {"type": "stream", "name": name, "text": text},
        *(st.sampled_from(["stdout", "stderr"]), st.text()),
    ),
    st.builds(
        lambda kind, data: {"type": kind, "data": data, "metadata": {}},
        st.sampled_from(["execute_result", "display_data", "update_display_data"]),
        st.dictionaries(st.sampled_from(["text/plain", "text/html", "image/png", "application/x-own"]), st.text()),
    ),
    st.builds(
        lambda ename, evalue, traceback: {"type": "error", "ename": ename, "evalue": evalue, "traceback": traceback},
        *(st.text(), st.text(), st.lists(st.text())),
    ),
    st.builds(lambda wait: {"type": "clear_output", "wait": wait}, st.booleans()),
)


def text_of(outputs, notes=()):
    return execution_text(shown(outputs), notes)


def stream(text, name="stdout"):
    return {"type": "stream", "name": name, "text": text}


def result(**data):
    return {"type": "execute_result", "execution_count": 1, "data": {key.replace("_", "/"): data[key] for key in data}}


@given(st.text(max_size=500), st.integers(0, 200))
def test_cut_text_is_never_longer_than_the_limit_and_short_text_is_whole(text, limit):
    short = cut(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert short == text


@given(st.integers(101, 5000), st.integers(100, 400))
def test_a_cut_says_how_much_was_left_out(length, limit):
    text = "".join(chr(0x100 + index % 500) for index in range(length))
    short = cut(text, limit)
    if length > limit:
        head, note, tail = short.split("\n")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert note == f"[... {length - len(head) - len(tail):,} characters left out ...]"


@given(st.text())
def test_plain_text_has_no_controls_and_stays_as_it_is(text):
    cleaned = plain(text)
    assert not set(cleaned) & {chr(code) for code in range(32) if code not in {9, 10}}
    assert plain(cleaned) == cleaned


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_text_without_controls_is_left_alone(text):
    assert plain(text) == text


def test_colours_titles_and_links_are_left_out():
    assert plain("\x1b[0;31mred\x1b[0m \x1b]8;;http://a\x07link\x1b]8;;\x1b\\ \x1b[38;5;208mx") == "red link x"


def test_of_a_progress_bar_its_last_state_is_kept():
    assert plain("start\n 10%\r 50%\r100%\ndone\r\n") == "start\n100%\ndone\n"
    assert plain("\r 10%\r 90%\r") == " 90%"


def test_outputs_come_in_their_order_with_standard_error_marked():
    outputs = [stream("a"), stream("b\n"), stream("careful\n", "stderr"), stream("c\n"), result(text_plain="42")]
    assert text_of(outputs) == "ab\n[stderr]\ncareful\nc\n42"


def test_html_is_left_out_when_there_is_plain_text():
    assert text_of([result(text_plain="a  b", text_html="<table>")]) == "a  b"
    assert text_of([result(text_html="<b>a</b>")]) == "<b>a</b>"
    assert text_of([result(**{"application_x-own": "?"})]) == "[a value of type application/x-own]"


def test_an_image_needs_no_description():
    assert text_of([result(image_png=PNG, text_plain="<Figure>"), stream("hello\n")]) == "hello"


@pytest.mark.parametrize(
    ("written", "shown_in_the_end"),
    [
        ("12345\b\b\bab", "12ab5"),
        ("\b\bx", "x"),
        ("100 of 200\r 99", " 99 of 200"),
        ("loading...\r\x1b[Kdone\n", "done\n"),
        ("loading...\x1b[2K\rdone", "done"),
        ("a: 1\nb: 1\x1b[A\ra: 2\n\rb: 2", "a: 2\nb: 2"),
        ("a\nb\nc\x1b[2F\x1b[Jx", "x"),
        ("first\x1b[2J\x1b[Hsecond", "second"),
        ("ab\x1b[5Cc\x1b[3Dd", "ab   d c"),
        ("x\x1b[999999999Cy", "x" + " " * 999 + "y"),
        ("\rout: 0%\n\rin: 50%\x1b[A\n\r       \r\x1b[A\rout: 100%\n", "out: 100%\n"),
        ("\x1b[?25lhidden cursor\x1b[?25h", "hidden cursor"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
    ],
    ids=[
        *("backspaces", "before the line", "overwritten", "erased to the end", "erased line", "line above"),
        *("screen below", "cleared screen", "along the line", "far to the right", "nested bars", "cursor", "windows"),
    ],
)
def test_text_is_what_a_terminal_shows_in_the_end(written, shown_in_the_end):
    assert plain(written) == shown_in_the_end


def display(kind, display_id=None, **data):
    transient = {} if display_id is None else {"display_id": display_id}
    return {"type": kind, "data": {f"text/{name}": text for name, text in data.items()}, "transient": transient}


def test_of_a_display_that_is_updated_the_last_state_is_shown_in_its_place():
    outputs = [
        display("display_data", "a", plain="0 %"),
        stream("between\n"),
        display("update_display_data", "a", plain="50 %"),
        display("update_display_data", "a", plain="100 %"),
    ]
    assert text_of(outputs) == "100 %\nbetween"


def test_a_display_shown_twice_is_updated_in_both_places():
    outputs = [display("display_data", "a", plain="old"), stream("x\n"), display("display_data", "a", plain="new")]
    assert text_of(outputs) == "new\nx\nnew"


def test_a_flood_of_displays_of_one_name_takes_no_more_than_a_moment():
    began = time.monotonic()
    shown([display("display_data", "a", plain=str(number)) for number in range(50_000)])
    assert time.monotonic() - began < 5


def test_an_update_of_an_earlier_calls_display_is_shown_once():
    outputs = [display("update_display_data", "a", plain="1"), display("update_display_data", "a", plain="2")]
    assert text_of(outputs) == "2"


def test_an_update_of_what_was_cleared_is_gone_with_it():
    clear = {"type": "clear_output", "wait": False}
    outputs = [display("display_data", "a", plain="1"), clear, display("update_display_data", "a", plain="2")]
    assert text_of(outputs) == ""


@pytest.mark.parametrize(
    ("mime_type", "value", "text"),
    [
        ("text/markdown", "# Title", "# Title"),
        ("text/html", "<b>a</b>", "<b>a</b>"),
        ("text/html", f'<img src="data:image/png;base64,{"A" * 500}">', '<img src="data:image/png;base64,...">'),
        ("text/latex", "$x^2$", "$x^2$"),
        ("application/json", {"a": [1, None]}, '{"a": [1, null]}'),
        ("application/json", "text", '"text"'),
        ("application/geo+json", {"type": "Point"}, '{"type": "Point"}'),
        ("image/svg+xml", "<svg/>", "<svg/>"),
        ("application/javascript", "f()", "f()"),
    ],
    ids=["markdown", "html", "embedded image", "latex", "json", "json text", "geojson", "svg", "javascript"],
)
@pytest.mark.parametrize(
    "name",
    ["<IPython.core.display.X object>", "<x.Y object at 0x7f00>", "<x.Y at 0x7f00>"],
    ids=["ipython", "own", "short"],
)
def test_an_object_without_text_of_its_own_is_given_as_what_it_shows(name, mime_type, value, text):
    assert text_of([{"type": "display_data", "data": {mime_type: value, "text/plain": name}}]) == text


@pytest.mark.parametrize("mime_type", ["image/svg+xml", "application/pdf"], ids=["svg", "pdf"])
def test_a_plot_that_cannot_be_shown_says_how_it_can(mime_type):
    name = "<Figure size 640x480 with 1 Axes>"
    text = text_of([{"type": "display_data", "data": {mime_type: "...", "text/plain": name}}])
    assert text == f"{name}\n[It is drawn as {mime_type}, which cannot be shown here: draw it as PNG.]"


def test_long_markup_is_cut():
    data = {"image/svg+xml": "<svg>" + "x" * 100_000 + "</svg>", "text/plain": "<IPython.core.display.SVG object>"}
    text = text_of([{"type": "display_data", "data": data}])
    assert len(text) <= 6_000
    assert text.endswith("</svg>")


def test_cleared_outputs_are_gone():
    clear, later = {"type": "clear_output", "wait": False}, {"type": "clear_output", "wait": True}
    assert text_of([stream("a"), clear, stream("b")]) == "b"
    assert text_of([stream("a"), later]) == "a"
    assert text_of([stream("a"), later, stream("b")]) == "b"


def test_outputs_are_not_changed():
    outputs = [stream("a"), stream("b")]
    text_of(outputs)
    assert outputs == [stream("a"), stream("b")]


def test_an_error_and_notes_survive_a_flood():
    error = {"type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    text = text_of([stream("x" * 100_000), error], ["It was replaced."])
    assert len(text) <= LIMIT
    assert text.endswith("ValueError: no\nIt was replaced.")
    assert "characters left out" in text


FLOODS = [
    "x",
    "x\r",
    "\x1b]",
    "\x1b[1;",
    "\n",
    "\r\n",
    " \r\n",
    "\b",
    "\x1b[1K",
    "\x1b[2Kx",
    "\x1b[999C.",
    "\n\x1b[J\x1b[H",
]


@pytest.mark.parametrize("piece", FLOODS, ids=[ascii(piece) for piece in FLOODS])
def test_a_flood_takes_no_more_than_a_moment(piece):
    outputs = [stream(piece * 100)] * 10_000
    began = time.monotonic()
    assert len(text_of(outputs)) <= LIMIT
    assert time.monotonic() - began < 5


FRAMES = [
    "\x1b[31m---------\x1b[39m",
    "\x1b[31mValueError\x1b[39m    Traceback (most recent call last)",
    "\x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[1]\x1b[39m\x1b[32m, line 1\x1b[39m\n----> 1 deep()",
    *(f"File /lib/pkg/{number}.py:1, in f()\n----> 1 g()" for number in range(20)),
    "ValueError: \x1b[1mbad\x1b[0m value",
]


def test_of_a_long_traceback_the_own_frame_and_the_last_ones_are_kept():
    text = traceback_text("ValueError", "bad value", FRAMES)
    assert text.startswith("Traceback (most recent call last):\nCell In[1], line 1\n----> 1 deep()\n")
    assert "[... 16 frames left out ...]" in text
    assert "pkg/15.py" not in text
    assert all(f"pkg/{number}.py" in text for number in range(16, 20))
    assert text.endswith("\nValueError: bad value")
    assert "\x1b" not in text


def test_a_syntax_error_keeps_its_place():
    entry = "  \x1b[36mCell\x1b[39m In[2], line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n"
    text = traceback_text("SyntaxError", "invalid syntax (1.py, line 1)", [entry])
    assert "x = = 1" in text
    assert text.endswith("SyntaxError: invalid syntax (1.py, line 1)")


@given(st.text(), st.text(), st.lists(st.text()))
def test_a_traceback_is_short_and_ends_with_its_message(ename, evalue, traceback):
    text = traceback_text(ename, evalue, traceback)
    assert len(text) <= 6000
    assert plain(ename) in text


@given(st.lists(OUTPUTS), st.lists(st.text(max_size=50), max_size=3))
def test_any_outputs_can_be_shown(outputs, notes):
    text = text_of(outputs, notes)
    assert len(text) <= LIMIT
    assert "\x1b" not in text or any("\x1b" in note for note in notes)


@given(st.text(), st.text(), st.integers(-15, 255))
def test_a_commands_exit_code_is_always_told(stdout, stderr, code):
    text = command_text(stdout, stderr, [f"[exit code {code}]"])
    assert text.endswith(f"[exit code {code}]")


def test_a_commands_standard_error_is_marked():
    assert command_text("out\n", "err\n", ["[exit code 1]"]) == "out\n[stderr]\nerr\n[exit code 1]"
