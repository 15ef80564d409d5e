"""Notebooks as they come in: any JSON is either made one of format 4.5 or refused with one clear error."""

import contextlib
import copy
import json
import tracemalloc
from typing import Any

import hypothesis.strategies as st
import nbformat
import pytest
from hypothesis import given, settings

from interpreter.errors import InvalidRequest
from interpreter.notebooks.format import (
    MAX_CELLS,
    as_file,
    as_json,
    as_members,
    fill_metadata,
    parse_notebook,
    read_notebook,
)

TEXTS = st.text(max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(TEXTS, parts, max_size=3),
    max_leaves=8,
)
GOOD = nbformat.v4.new_notebook(
    cells=[nbformat.v4.new_code_cell("1", id="one"), nbformat.v4.new_markdown_cell("m", id="two")]
)
KEYS = st.sampled_from(["nbformat", "nbformat_minor", "metadata", "cells", "worksheets", "x"])
CELL_KEYS = st.sampled_from(
    ["id", "cell_type", "metadata", "source", "outputs", "attachments", "input", "level", "tags"]
)


def cells(value: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    kinds = st.fixed_dictionaries({"cell_type": st.sampled_from(["code", "markdown", "raw", "heading", "html"])})
    return st.lists(
        st.builds(lambda kind, rest: {**rest, **kind}, kinds, st.dictionaries(CELL_KEYS, value, max_size=5)), max_size=3
    )


NOTEBOOKS = st.builds(
    lambda version, rest, cells: {**rest, **version, "cells": cells, "worksheets": [{"cells": cells, "metadata": {}}]},
    st.fixed_dictionaries({"nbformat": st.integers(2, 5), "nbformat_minor": st.integers(-1, 7)}),
    st.dictionaries(KEYS, JSON, max_size=4),
    cells(JSON | st.just({}) | st.lists(TEXTS, max_size=2)),
)


@given(JSON | NOTEBOOKS)
@settings(max_examples=300)
def test_anything_is_read_or_refused(value: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        nbformat.validate(read_notebook(value))


@given(st.sampled_from(["nbformat", "nbformat_minor", "metadata", "cells"]), JSON)
def test_a_notebook_with_one_thing_wrong_is_read_or_refused(key: str, value: Any) -> None:
    with contextlib.suppress(InvalidRequest):
        nbformat.validate(read_notebook({**copy.deepcopy(GOOD), key: value}))


@pytest.mark.parametrize("minor", range(8))
def test_every_minor_version_is_upgraded(minor: int) -> None:
    notebook = {**copy.deepcopy(GOOD), "nbformat_minor": minor}
    if minor < 5:
        for cell in notebook["cells"]:
            del cell["id"]
    read = read_notebook(notebook)
    assert (read["nbformat"], read["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in read["cells"]}) == 2


@pytest.mark.parametrize("minor", range(5))
def test_ids_of_cells_are_taken_also_in_a_notebook_that_is_too_old_for_them(minor: int) -> None:
    cell = {"cell_type": "code", "id": "mine", "metadata": {}, "source": "1", "outputs": [], "execution_count": None}
    notebook = {"nbformat": 4, "nbformat_minor": minor, "metadata": {}, "cells": [cell]}
    assert read_notebook(notebook)["cells"][0]["id"] == "mine"


def test_cells_without_an_id_and_with_that_of_another_get_one() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"{number}") for number in range(3)])
    for cell in notebook["cells"]:
        cell["id"] = "a"
    del notebook["cells"][2]["id"]
    ids = [cell["id"] for cell in read_notebook(notebook)["cells"]]
    assert ids[0] == "a"
    assert len(set(ids)) == 3


def test_outputs_of_an_earlier_run_are_left_out_whatever_they_are() -> None:
    notebook = copy.deepcopy(GOOD)
    notebook["cells"][0] |= {"outputs": [{"output_type": "new"}], "execution_count": 7}
    cell = read_notebook(notebook)["cells"][0]
    assert (cell["outputs"], cell["execution_count"]) == ([], None)


def code(**more: Any) -> dict[str, Any]:
    return {"cell_type": "code", "id": "one", "metadata": {}, "source": "1", "outputs": [], **more}


def read_cell(cell: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One cell of a notebook, as it is read."""
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell], **more}
    return read_notebook(notebook)["cells"][0]


@pytest.mark.parametrize(
    ("cell", "change"),
    [
        ({"cell_type": "markdown", "outputs": [], "execution_count": 1}, {"cell_type": "markdown"}),
        ({"cell_type": "raw", "prompt_number": 2}, {"cell_type": "raw"}),
        ({"cell_type": "heading", "level": 3}, {"cell_type": "markdown", "source": "### 1"}),
        ({"cell_type": "heading", "level": 10**12}, {"cell_type": "markdown", "source": "###### 1"}),
        ({"cell_type": "sql"}, {"cell_type": "raw"}),
        ({"cell_type": "markdown", "attachments": {"a": 1}}, {"cell_type": "markdown"}),
        ({"id": "#VSC-1a2b"}, {"id": "VSC-1a2b"}),
        ({"id": "my cell"}, {"id": "my-cell"}),
        ({"id": "x" * 300}, {"id": "x" * 64}),
        ({"metadata": {"collapsed": None, "own": 1}}, {"metadata": {"own": 1}}),
        ({"metadata": {"tags": ["a", "a", "b"]}}, {"metadata": {"tags": ["a", "b"]}}),
        ({"metadata": {"tags": "a,b"}}, {"metadata": {"tags": ["a", "b"]}}),
        ({"metadata": {"tags": [1, "", "a"]}}, {"metadata": {"tags": ["a"]}}),
        ({"metadata": {"tags": None, "name": "", "scrolled": 1, "jupyter": 0, "execution": {"a": 1}}}, {}),
        ({"metadata": None}, {}),
        ({"source": None}, {"source": ""}),
        ({"source": ["a\n", "b"]}, {"source": "a\nb"}),
        ({"own": 1, "language": "python"}, {}),
    ],
    ids=[
        *("outputs of markdown", "key of raw", "heading", "deep heading", "unknown kind", "attachments", "vscode id"),
        *("id with a space", "long id", "collapsed null", "tag twice", "tags as text", "tags that are none"),
        *("other metadata", "no metadata", "no source", "lines", "unknown keys"),
    ],
)
def test_what_jupyter_opens_is_mended(cell: dict[str, Any], change: dict[str, Any]) -> None:
    read = read_cell(code(**cell))
    expected = {"cell_type": "code", "id": "one", "metadata": {}, "source": "1", **change}
    if expected["cell_type"] == "code":
        expected |= {"outputs": [], "execution_count": None}
    assert read == expected


@pytest.mark.parametrize("cell_id", ["", "##", None, 7, []], ids=["empty", "no letters", "null", "number", "list"])
def test_what_is_no_id_at_all_is_replaced(cell_id: Any) -> None:
    assert len(read_cell(code(id=cell_id))["id"]) == 8


@pytest.mark.parametrize(
    ("metadata", "read"),
    [
        ({"kernelspec": {"name": "python3"}}, {"kernelspec": {"name": "python3", "display_name": "python3"}}),
        ({"kernelspec": {"display_name": "P"}}, {"kernelspec": {"name": "P", "display_name": "P"}}),
        ({"kernelspec": None, "language_info": {}, "title": 1, "authors": "me", "orig_nbformat": 0}, {}),
        (
            {"language_info": {"name": "python", "file_extension": 1, "codemirror_mode": []}},
            {"language_info": {"name": "python"}},
        ),
        (None, {}),
        ({"name": "kept", "own": [1]}, {"name": "kept", "own": [1]}),
    ],
    ids=["no display name", "no name", "wrong kinds", "language", "null", "own"],
)
def test_metadata_of_the_notebook_is_mended(metadata: Any, read: dict[str, Any]) -> None:
    assert read_notebook({**copy.deepcopy(GOOD), "metadata": metadata})["metadata"] == read


@pytest.mark.parametrize("major", [2, 3])
def test_a_notebook_of_an_older_format_becomes_one_of_format_4(major: int) -> None:
    cells = [
        {"cell_type": "heading", "level": 10**12, "source": ["a\n", "b"]},
        {"cell_type": "code", "language": "python", "input": ["x = 1", "x"], "prompt_number": 3, "collapsed": True},
        {"cell_type": "html", "source": "<b>"},
    ]
    worksheets = [{"cells": cells[:1]}, {"cells": cells[1:], "metadata": {}}]
    notebook = read_notebook({"nbformat": major, "metadata": {"name": "gone"}, "worksheets": worksheets})
    assert [(cell["cell_type"], cell["source"]) for cell in notebook["cells"]] == [
        ("markdown", "###### a b"),
        ("code", "x = 1\nx"),
        ("markdown", "<b>"),
    ]
    assert notebook["cells"][1]["metadata"] == {"collapsed": True}
    assert notebook["metadata"] == {}


@pytest.mark.parametrize(
    "content", [{}, {"worksheets": []}, {"worksheets": [{}]}], ids=["no sheets", "no sheet", "a sheet without cells"]
)
def test_an_older_notebook_may_have_nothing_in_it(content: dict[str, Any]) -> None:
    assert read_notebook({"nbformat": 3, **content})["cells"] == []


@pytest.mark.parametrize("key", ["tags", "level"])
def test_what_is_mended_takes_no_more_room_than_it_came_with(key: str) -> None:
    many = "ab," * 5_000_000
    cell = code(metadata={"tags": many}) if key == "tags" else code(cell_type="heading", source="a\n" * 1_000_000)
    tracemalloc.start()
    try:
        read_cell(cell)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": [{"cell_type": "raw", "source": ""}] * (MAX_CELLS + 1)}, "cells"),
        ({"metadata": {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}}, "only Python"),
        ({"nbformat": True}, "no nbformat"),
        ({"nbformat": 10**30}, "cannot be run"),
        ({"cells": [{"source": "1"}]}, "cell 0 of the notebook has no cell_type"),
        ({"cells": [{"cell_type": "code", "source": [1]}]}, "source of cell 0 of the notebook is not text"),
        ({"cells": {}}, "not a list"),
        ({"cells": [1]}, "not an object"),
    ],
    ids=["many cells", "another language", "no version", "version", "no kind", "source", "no list", "no object"],
)
def test_what_is_wrong_is_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_notebook({**copy.deepcopy(GOOD), **change})


@given(JSON)
def test_json_is_what_every_parser_takes(value: Any) -> None:
    json.loads(as_json(value), parse_constant=pytest.fail)
    nested = json.loads(b"{" + b"".join(as_members({"value": value}, copy.deepcopy(GOOD))) + b"}")
    assert nested["notebook"] == GOOD


def test_a_file_is_read_again() -> None:
    notebook = read_notebook(copy.deepcopy(GOOD))
    assert read_notebook(parse_notebook(as_file(notebook))) == notebook


@given(JSON | st.dictionaries(st.sampled_from(["name", "version", "codemirror_mode"]), JSON | TEXTS, max_size=3))
def test_what_a_kernel_tells_of_its_language_makes_no_notebook_invalid(told: Any) -> None:
    notebook = read_notebook(copy.deepcopy(GOOD))
    fill_metadata(notebook, told)
    nbformat.validate(notebook)
    assert notebook["metadata"]["language_info"]["name"] is not None
