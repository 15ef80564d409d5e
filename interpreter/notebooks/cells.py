"""Which cells of a notebook are run, and which of them end it: the same wherever a notebook runs."""

from typing import Any, Final

from interpreter.kernel.outputs import system_exit
from interpreter.notebooks.format import Notebook, read_notebook

_SKIP: Final = "skip-execution"
_MAY_RAISE: Final = "raises-exception"
_MARKER: Final = "papermill-error-cell-tag"
"""Of cells that papermill adds to a notebook that failed."""


def notebook_to_run(value: object) -> Notebook:
    """See `read_notebook`; without what papermill adds to notebooks that failed. Raises InvalidRequest."""
    notebook = read_notebook(value)
    notebook["cells"] = [cell for cell in notebook["cells"] if _MARKER not in tags_of(cell)]
    return notebook


def tags_of(cell: dict[str, Any]) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def is_run(cell: dict[str, Any]) -> bool:
    """Whether it is code that is to be run."""
    return cell["cell_type"] == "code" and cell["source"].strip() != "" and _SKIP not in tags_of(cell)


def may_raise(cell: dict[str, Any]) -> bool:
    """Whether the notebook goes on when it raises."""
    return _MAY_RAISE in tags_of(cell)


def ends_well(error: dict[str, Any] | None) -> bool:
    """Whether an exception says that the notebook has ended itself, and that all is well."""
    left = system_exit(error.get("ename"), error.get("evalue")) if error else None
    return left is not None and left.status == 0
