"""The gate for JSON: nothing over a limit is parsed, nothing within is refused, whatever stands in the strings."""

import asyncio
import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import TooLarge
from interpreter.kernel.limits import MAX_DEPTH, MAX_NUMBER, MAX_SIZE, STEP, check_json, checking, dump_json, load_json
from interpreter.turns import at_once, in_turns

TEXTS = st.text(st.sampled_from('a,[]{}:"\\\n0123é\U0001f600\ud800')) | st.text(max_size=5)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = st.recursive(LEAVES, lambda parts: st.lists(parts) | st.dictionaries(TEXTS, parts), max_leaves=30)


def counted(value: object) -> int:
    """Values, keys too; an empty list or object as two."""
    match value:
        case dict():
            members = cast("dict[str, object]", value)
            return 1 + (sum(1 + counted(part) for part in members.values()) or 1)
        case list():
            return 1 + (sum(map(counted, cast("list[object]", value))) or 1)
        case _:
            return 1


def passes(data: bytes, **limits: int) -> bool:
    try:
        check_json(data, "it", **limits)
    except TooLarge:
        return False
    return True


@given(VALUES, st.booleans(), st.booleans())
def test_what_has_as_many_values_as_the_limit_passes_and_one_more_does_not(
    value: Any, ascii_only: bool, indented: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=1 if indented else None)
    data = text.encode("utf-8", "surrogatepass")
    count = counted(value)
    assert passes(data, values=count)
    # Deep ones and few of them are let through by what is counted first; the exact count is what must hold.
    assert not passes(data, values=count - 1) or count == 1


@given(st.binary(max_size=60) | st.text(st.sampled_from('[]{},:"\\ 0e-1'), max_size=60).map(str.encode), st.data())
def test_nothing_that_parses_has_more_values_than_were_allowed(data: bytes, draws: st.DataObject) -> None:
    values = draws.draw(st.integers(1, 10))
    try:
        value = load_json(data, "it", values=values)
    except (ValueError, TooLarge):
        return
    # A key that comes twice is counted twice and kept once.
    assert counted(value) <= values + 1


@given(
    VALUES.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | st.text(st.sampled_from('[]{},:"\\ 0')).map(str.encode),
    st.integers(1, 9),
    st.integers(1, 30),
)
def test_steps_of_any_length_count_the_same(data: bytes, step: int, values: int) -> None:
    def counted_in(step: int) -> bool:
        try:
            at_once(checking(data, "it", values=values, step=step))
        except TooLarge:
            return False
        return True

    assert counted_in(step) == counted_in(len(data) + 1)


async def test_others_have_turns_while_a_long_text_is_counted() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await in_turns(checking(dump_json({"text": '"123456","123456"\n' * 650_000}), "it"))
    task.cancel()
    # It is gone through twice, in steps.
    assert turns >= 2 * 13_000_000 // STEP


@given(st.integers(1, 300), st.sampled_from(["[", '{"a":']))
def test_what_is_deeper_than_the_limit_is_refused(depth: int, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    for within in ("", f'"{"[" * 500}", '):
        data = f"[{within}{opening * (depth - 1)}1{closing * (depth - 1)}]".encode()
        assert passes(data) == (depth <= MAX_DEPTH)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" + b"0," * 10_000_000 + b"0]", "bytes of JSON"),
        (b"[" + b"0," * 5_000_000 + b"0]", "values"),
        (b"[" + b"{}," * 5_000_000 + b"0]", "values"),
        (b'["' + b'","' * 5_000_000 + b'"]', "values"),
        (b'"' * (MAX_SIZE - 1) + b",", None),
        (b"[" * MAX_SIZE, "values"),
        (b"[" + b"1" * (MAX_NUMBER + 1) + b"," + b"1000000," * 190_000 + b"0]", "a number"),
        (b"[" + (b"1" * 4000 + b",") * 2500 + b"0]", "a number"),
    ],
)
def test_what_would_take_long_to_parse_is_refused_by_its_bytes(data: bytes, said: str | None) -> None:
    if said is None:
        # No JSON at all: a parser stops at its beginning.
        with pytest.raises(ValueError, match="trailing"):
            load_json(data, "it")
        return
    with pytest.raises(TooLarge, match=said):
        load_json(data, "it")


@pytest.mark.parametrize(
    "text", ["x" * 10_000_000, "1,2,[3],{4:5}\n" * 700_000, '"a","b"\\\n' * 1_000_000, "7" * 10_000_000]
)
def test_one_long_string_passes_whatever_is_in_it(text: str) -> None:
    assert load_json(dump_json({"text": text}), "it") == {"text": text}


@pytest.mark.parametrize(
    ("data", "text"),
    [(b'"\\ud800"', "?"), (b'"a\\udcffb"', "a?b"), (b'"\xff"', "�"), (b'"\\ud83d\\ude00"', "\U0001f600")],
)
def test_text_that_is_half_a_character_becomes_text(data: bytes, text: str) -> None:
    assert load_json(data, "it") == text
    assert dump_json(text).decode()


def test_text_that_cannot_be_written_is_written_with_a_mark_in_its_place() -> None:
    assert json.loads(dump_json({"a": "x\ud800"})) == {"a": "x?"}
