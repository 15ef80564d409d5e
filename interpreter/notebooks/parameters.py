"""Parameters of a notebook, as papermill puts them in: a cell of assignments after the one tagged ``parameters``."""

import keyword
import math
from collections.abc import Mapping
from typing import Any, Final, cast

from interpreter.errors import InvalidRequest
from interpreter.notebooks.cells import tags_of
from interpreter.notebooks.format import MAX_SOURCE, Notebook, new_cell

INJECTED: Final = "injected-parameters"
_DECLARED: Final = "parameters"
_COMMENT: Final = "# Parameters"


def inject_parameters(notebook: Notebook, parameters: Mapping[str, Any]) -> None:
    """Put a cell with the parameters in the place of an earlier one, after the cell that declares them, or on top.

    Without parameters the notebook stays as it is. Raises InvalidRequest.
    """
    if not parameters:
        return
    cells: list[dict[str, Any]] = notebook["cells"]
    cell = new_cell(source_of(parameters), [INJECTED], {one["id"] for one in cells})
    injected, declared = _first(cells, INJECTED), _first(cells, _DECLARED)
    if injected is not None:
        cells[injected] = cell
    else:
        cells.insert(0 if declared is None else declared + 1, cell)


def source_of(parameters: Mapping[str, Any]) -> str:
    """Python that assigns JSON values to names. Raises InvalidRequest."""
    lines = [_COMMENT]
    for name, value in parameters.items():
        # The one name that is neither a keyword nor can be assigned to.
        if not name.isidentifier() or keyword.iskeyword(name) or name == "__debug__":
            raise InvalidRequest(f"{name[:100]!r} cannot be a parameter: it is not the name of a variable")
        lines.append(f"{name} = {literal(value)}")
    source = "\n".join(lines) + "\n"
    if len(source) > MAX_SOURCE:
        raise InvalidRequest(f"the parameters take more than {MAX_SOURCE} characters")
    return source


def literal(value: object) -> str:
    """A JSON value as Python, in ASCII."""
    match value:
        case str():
            return _text(value)
        case float() if math.isnan(value):
            return "float('nan')"
        case float() if math.isinf(value):
            return "float('inf')" if value > 0 else "float('-inf')"
        case dict():
            members = cast("dict[str, object]", value).items()
            return "{" + ", ".join(f"{_text(key)}: {literal(part)}" for key, part in members) + "}"
        case list():
            return "[" + ", ".join(map(literal, cast("list[object]", value))) + "]"
        case _:
            return repr(value)


def _text(value: str) -> str:
    return '"' + value.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _first(cells: list[dict[str, Any]], tag: str) -> int | None:
    return next((index for index, cell in enumerate(cells) if tag in tags_of(cell)), None)
