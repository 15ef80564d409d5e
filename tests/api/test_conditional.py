"""What a file server answers to Range and conditions: RFC 9110, sections 13 and 14, as nginx and Go's have it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from interpreter.api.http.conditional import Selected, Validators, select

FILE = Validators(size=1000, etag='"a-3e8"', modified=1_600_000_000)
DATE = "Sun, 13 Sep 2020 12:26:40 GMT"
BEFORE = "Sun, 13 Sep 2020 12:26:39 GMT"
WHOLE = Selected(200, 0, 1000)


def selected(file: Validators = FILE, *, ranges: bool = True, **given: str) -> Selected:
    headers = Headers({name.replace("_", "-"): value for name, value in given.items()})
    return select(headers, file, ranges=ranges)


@pytest.mark.parametrize(
    ("text", "start", "count"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 1000),
        ("bytes=999-", 999, 1),
        ("bytes=10-19", 10, 10),
        ("bytes=990-5000", 990, 10),
        ("bytes=-1", 999, 1),
        ("bytes=-5000", 0, 1000),
        ("Bytes=5-5", 5, 1),
        (" bytes = 5 - 6 ", 5, 2),
    ],
)
def test_a_range_is_a_part(text: str, start: int, count: int) -> None:
    assert selected(range=text) == Selected(206, start, count)


@pytest.mark.parametrize("text", ["bytes=1000-", "bytes=5000-", "bytes=1000-1001", "bytes=5000-6000", "bytes=-0"])
def test_a_range_that_the_file_has_nothing_of_is_refused(text: str) -> None:
    assert selected(range=text).status == 416


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "lines=1-2", "bytes=0-1,5-6", "bytes=--1", "bytes=1"],
    ids=lambda text: text or "nothing",
)
def test_a_range_that_is_not_understood_gets_it_all(text: str) -> None:
    assert selected(range=text) == WHOLE


def test_a_number_that_no_size_has_is_not_understood() -> None:
    assert selected(range=f"bytes={'9' * 5000}-") == WHOLE


@given(size=st.integers(1, 50), first=st.integers(0, 60), last=st.one_of(st.none(), st.integers(0, 60)))
def test_every_range_is_the_slice_that_it_names(size: int, first: int, last: int | None) -> None:
    given_range = f"bytes={first}-{'' if last is None else last}"
    found = selected(Validators(size, '"x"', None), range=given_range)
    expected = bytes(range(size))[first : None if last is None else last + 1]
    if last is not None and last < first:
        assert found == Selected(200, 0, size)
    elif expected:
        assert found == Selected(206, first, len(expected))
    else:
        assert found.status == 416


def test_of_an_empty_file_every_range_is_all() -> None:
    empty = Validators(0, '"b-0"', None)
    assert selected(empty, range="bytes=0-") == selected(empty, range="bytes=-5") == Selected(200, 0, 0)


def test_head_passes_over_range() -> None:
    assert selected(ranges=False, range="bytes=5-") == WHOLE


@pytest.mark.parametrize(
    ("if_range", "status"),
    [('"a-3e8"', 206), (DATE, 206), ('"other"', 200), ('W/"a-3e8"', 200), (BEFORE, 200), ("nonsense", 200)],
)
def test_a_part_of_another_state_is_not_given(if_range: str, status: int) -> None:
    assert selected(range="bytes=5-", if_range=if_range).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if_none_match": '"a-3e8"'}, 304),
        ({"if_none_match": 'W/"a-3e8"'}, 304),
        ({"if_none_match": '"x", "a-3e8"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"x"'}, 200),
        # The tag goes before the date.
        ({"if_none_match": '"x"', "if_modified_since": DATE}, 200),
        ({"if_modified_since": DATE}, 304),
        ({"if_modified_since": BEFORE}, 200),
        ({"if_modified_since": "yesterday"}, 200),
        ({"if_match": '"a-3e8"'}, 200),
        ({"if_match": "*"}, 200),
        ({"if_match": '"x"'}, 412),
        ({"if_match": 'W/"a-3e8"'}, 412),
        ({"if_unmodified_since": BEFORE}, 412),
        ({"if_unmodified_since": DATE}, 200),
        ({"if_match": '"a-3e8"', "if_unmodified_since": BEFORE}, 200),
        ({"if_none_match": '"a-3e8"', "range": "bytes=5-"}, 304),
        ({"if_match": '"a-3e8"', "range": "bytes=5-"}, 206),
    ],
    ids=str,
)
def test_conditions(headers: dict[str, str], status: int) -> None:
    assert (
        select(Headers({name.replace("_", "-"): value for name, value in headers.items()}), FILE, ranges=True).status
        == status
    )
