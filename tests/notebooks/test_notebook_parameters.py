"""Parameters of notebooks: the values that papermill's own cells give, in the places where it puts them."""

import copy
import keyword
import math
from typing import Any

import hypothesis.strategies as st
import nbformat
import pytest
from hypothesis import example, given
from papermill.parameterize import parameterize_notebook
from papermill.translators import PythonTranslator

from interpreter.errors import InvalidRequest
from interpreter.kernel.limits import MAX_DEPTH
from interpreter.notebooks.format import read_notebook
from interpreter.notebooks.parameters import inject_parameters, literal, source_of

# What JSON can hold, as Python parses it. No half surrogates: a request with one is refused.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(LEAVES, lambda parts: st.lists(parts) | st.dictionaries(TEXTS, parts), max_leaves=20)
NAMES = TEXTS.filter(lambda name: name.isidentifier() and not keyword.iskeyword(name) and name != "__debug__")
TAGS = st.sampled_from([[], ["parameters"], ["injected-parameters"], ["other", "parameters"]])


def same(one: object, other: object) -> bool:
    """Whether two values are alike, also where they are not a number, and of one type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def ran(source: str) -> dict[str, Any]:
    variables: dict[str, Any] = {"__builtins__": {"float": float}}
    exec(source, variables)
    del variables["__builtins__"]
    return variables


@given(VALUES)
@example("\"\\'\n\r\t\0\x1b\u2028ä\U0001f600\\N{DASH} {x}")
@example([float("nan"), float("inf"), -float("inf"), -0.0, 1e400, 10**4000])
def test_a_literal_is_its_value_and_papermills_own(value: object) -> None:
    text = literal(value)
    assert text.isascii()
    assert same(eval(text), value)
    assert text == PythonTranslator.translate(value)


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=5))
def test_the_cell_assigns_what_papermills_does(parameters: dict[str, Any]) -> None:
    source = source_of(parameters)
    assert source == PythonTranslator.codify(parameters)
    assert same(ran(source), ran(PythonTranslator.codify(parameters)))


@given(TEXTS | st.sampled_from([*keyword.kwlist, "__debug__", "a b", "1a", "a=1\nb", "", "\uff41"]))
def test_only_names_are_taken(name: str) -> None:
    try:
        source = source_of({name: 1})
    except InvalidRequest:
        assert not name.isidentifier() or keyword.iskeyword(name) or name == "__debug__"
    else:
        assert list(ran(source).values()) == [1]


def test_what_python_cannot_parse_is_refused() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert ran(source_of({"deep": deep})) == {"deep": deep}
    with pytest.raises(InvalidRequest, match="take more than"):
        source_of({"long": "x" * 8_000_000})


@given(st.lists(TAGS, max_size=5))
def test_the_cell_is_where_papermill_puts_it(tags: list[list[str]]) -> None:
    cells = [nbformat.v4.new_code_cell(f"{number}", metadata={"tags": own}) for number, own in enumerate(tags)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}, "papermill": {}}
    metadata["language_info"] = {"name": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    ours = read_notebook(copy.deepcopy(notebook))
    inject_parameters(ours, {"x": 1})
    theirs = parameterize_notebook(notebook, {"x": 1})
    assert [(cell["source"], cell["metadata"]["tags"]) for cell in ours["cells"]] == [
        (cell["source"], cell["metadata"]["tags"]) for cell in theirs["cells"]
    ]
    nbformat.validate(ours)


def test_without_parameters_nothing_changes() -> None:
    notebook = read_notebook(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]))
    inject_parameters(notebook, {})
    assert len(notebook["cells"]) == 1
