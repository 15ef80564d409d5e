"""Large notebooks are parsed in another process: what comes back is what was sent, but for outputs, or why not."""

import json
from typing import Any

import pytest

from interpreter.errors import InterpreterError, InvalidRequest, TooLarge
from interpreter.notebooks.apart import LARGE, without_outputs

OUTPUT = {"output_type": "stream", "name": "stdout", "text": "é\U0001f600" + "x" * LARGE}
CELL = {"cell_type": "code", "source": "1+1", "metadata": {"n": float("1e300")}, "outputs": [OUTPUT]}
BARE = {key: value for key, value in CELL.items() if key != "outputs"}
ODD: list[Any] = [None, "cell", 1, {"outputs": 1}]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"cells": [CELL, CELL], "nbformat": 4}, {"cells": [BARE, BARE], "nbformat": 4}),
        ({"notebook": {"cells": [CELL]}, "timeout": 3}, {"notebook": {"cells": [BARE]}, "timeout": 3}),
        ({"worksheets": [{"cells": [CELL]}, None]}, {"worksheets": [{"cells": [BARE]}, None]}),
        ({"cells": [*ODD, CELL]}, {"cells": [*ODD[:3], {}, BARE]}),
        ([CELL], [CELL]),
        ({"notebook": "x" * LARGE}, {"notebook": "x" * LARGE}),
    ],
    ids=["file", "body", "worksheets", "odd cells", "list", "no notebook"],
)
async def test_what_comes_back_is_what_was_sent_without_outputs(given: object, left: object) -> None:
    data = json.dumps(given).encode()
    assert len(data) > LARGE
    assert json.loads(await without_outputs(data)) == left


async def test_what_is_not_large_is_left_alone() -> None:
    data = b'{"cells": [{"outputs": []}]} ' * 10
    assert await without_outputs(data) is data


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b" " * LARGE + b"{", InvalidRequest, "cell.ipynb is not JSON"),
        (b'{"a": "\xff"}' + b" " * LARGE, InvalidRequest, "not Unicode"),
        (b'{"a": "\\ud800"}' + b" " * LARGE, InvalidRequest, "not Unicode"),
        (b"[" + b"0," * 3_000_000 + b"0]", TooLarge, "values"),
        (b"[" * 1000 + b" " * LARGE, TooLarge, "in each other"),
    ],
    ids=["no JSON", "no text", "half a character", "many values", "deep"],
)
async def test_why_it_cannot_be_parsed_is_told(data: bytes, error: type[InterpreterError], said: str) -> None:
    with pytest.raises(error, match=said):
        await without_outputs(data, "cell.ipynb")


async def test_one_that_takes_too_much_memory_is_refused() -> None:
    data = json.dumps({"cells": [{**CELL, "outputs": [OUTPUT] * 20}]}).encode()
    with pytest.raises(TooLarge, match="memory"):
        await without_outputs(data, memory=64 * 1024 * 1024)
