"""The same notebooks run by the service and by papermill: parameters, outputs and metadata come out alike."""

import asyncio
import contextlib
import copy
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from served import Api

from interpreter.events import joined

pytestmark = pytest.mark.machine

URL = "/v1/notebooks/execute"


def code(source: str, *tags: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def notebook_of(*cells: NotebookNode | str) -> NotebookNode:
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    metadata["language_info"] = {"name": "python"}
    return nbformat.v4.new_notebook(
        cells=[code(cell) if isinstance(cell, str) else cell for cell in cells], metadata=metadata
    )


DISPLAYS = """
from IPython.display import HTML, clear_output, display
handle = display(HTML('<b>old</b>'), display_id='one', metadata={'a': 1})
display({'application/json': {'x': [1, None]}, 'text/plain': 'json'}, raw=True)
print('out')
import sys
print('err', file=sys.stderr)
"""

NOTEBOOKS: dict[str, tuple[NotebookNode, dict[str, Any]]] = {
    "streams and results": (
        notebook_of("import sys", nbformat.v4.new_markdown_cell("# m"), "print('a'); print('b')\n6 * 7", "", "None"),
        {},
    ),
    "parameters": (
        notebook_of("'first'", code("alpha = 1\nname = 'x'", "parameters"), "alpha, name, odd, nested"),
        {"alpha": 0.25, "name": 'ä"\\\n', "odd": None, "nested": {"a": [True, 1e300, {"b": []}]}},
    ),
    "parameters without a place": (notebook_of("x"), {"x": 1}),
    "parameters anew": (notebook_of("x = 0", code("x = 1", "injected-parameters"), "x"), {"x": 2}),
    "displays": (notebook_of(DISPLAYS, "handle.update(HTML('<i>new</i>'))", "display(1, display_id='one');"), {}),
    "clearing": (
        notebook_of(
            "from IPython.display import clear_output\nprint(1)\nclear_output(wait=True)\nprint(2)", "print(3)"
        ),
        {},
    ),
    "an error": (notebook_of("x = 1", "def f():\n    return 1 / 0\nf()", "x"), {}),
    "no code": (notebook_of(nbformat.v4.new_markdown_cell("# m"), nbformat.v4.new_raw_cell("r")), {}),
    "skipped": (notebook_of("x = 1", code("x = 2", "skip-execution"), "x"), {}),
    "ended by itself": (notebook_of("import sys", "sys.exit(0)", "1"), {}),
    "a question": (notebook_of("input('name? ')"), {}),
}


def by_papermill(notebook: NotebookNode, parameters: dict[str, Any], folder: Path) -> NotebookNode:
    source, target = folder / "in.ipynb", folder / "out.ipynb"
    nbformat.write(notebook, source)
    # Without cwd, which would be that of this whole process, and so of the service.
    # An error is in the notebook, too, which it has written then with cells of its own that mark the place.
    with contextlib.suppress(PapermillExecutionError):
        papermill.execute_notebook(source, target, parameters, kernel_name="python3", progress_bar=False)
    executed = nbformat.read(target, as_version=4)
    executed.cells = [
        cell for cell in executed.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    return executed


def shape(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """What does not depend on when and where it ran."""
    return [
        {
            "type": cell["cell_type"],
            "source": cell["source"],
            "tags": cell["metadata"].get("tags", []),
            "count": cell.get("execution_count"),
            "outputs": [output_shape(output) for output in cell_outputs(cell)],
            "papermill": {key: cell["metadata"]["papermill"][key] for key in ("status", "exception")},
        }
        for cell in notebook["cells"]
    ]


def cell_outputs(cell: dict[str, Any]) -> list[dict[str, Any]]:
    events = [{**output, "type": output["output_type"]} for output in cell.get("outputs", [])]
    # A stock kernel advises after sys.exit() to leave by ways that are none in a session.
    events = [one for one in events if "To exit: use 'exit'" not in one.get("text", "")]
    # The two streams come by ways of their own, so that either may be first.
    streams = sorted((one for one in events if one["type"] == "stream"), key=lambda one: one["name"])
    return joined([one for one in events if one["type"] != "stream"] + streams)


def output_shape(output: dict[str, Any]) -> dict[str, Any]:
    # Tracebacks name files, and a warning the line of IPython's that gave it.
    left = {"traceback"} | ({"text"} if output.get("name") == "stderr" else set())
    return {key: value for key, value in output.items() if key not in left}


@pytest.mark.parametrize("name", NOTEBOOKS)
async def test_what_comes_out_is_what_papermill_makes_of_it(api: Api, shared: str, name: str, tmp_path: Path) -> None:
    notebook, parameters = NOTEBOOKS[name]
    body = {"notebook": notebook, "session_id": shared, "parameters": parameters}
    answer = await api.client.post(URL, json=copy.deepcopy(body))
    assert answer.status_code == 200, answer.text
    ours = answer.json()["notebook"]
    theirs = await asyncio.to_thread(by_papermill, notebook, parameters, tmp_path)
    assert shape(ours) == shape(theirs)
    about, other = ours["metadata"]["papermill"], theirs["metadata"]["papermill"]
    assert (about["parameters"], about["exception"]) == (other["parameters"], other["exception"])
    assert set(other) - set(about) == {"version"}
    assert ours["metadata"]["language_info"]["name"] == theirs["metadata"]["language_info"]["name"]
