"""The notebooks run from their first cell to their last, against a real service."""

import base64
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import nbformat
import pytest
from mcp_service import serve_with_mcp
from nbclient import NotebookClient
from nbformat import NotebookNode
from served import Api

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = ["quickstart", "csv_analysis", "agent_tool_call"]
SECONDS = 200


@pytest.fixture(scope="module")
async def url(api: Api) -> AsyncGenerator[str]:
    async with serve_with_mcp(api.service) as url:
        yield url


def read(name: str) -> NotebookNode:
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


async def run(name: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> NotebookNode:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    notebook = read(name)
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    await client.async_execute()
    return notebook


def texts(notebook: NotebookNode) -> str:
    """All that the cells printed."""
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


@pytest.mark.parametrize("name", NAMES)
def test_kept_outputs_are_whole_and_tell_nothing_of_where_they_were_made(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"] == list(
        range(1, 1 + sum(cell.cell_type == "code" for cell in notebook.cells))
    )
    assert texts(notebook)
    kept = str(list(outputs(notebook)))
    assert not [part for part in ("/tmp/", "/root", "/home/", "\x1b") if part in kept.replace("/home/user", "")]
    assert not [output for output in outputs(notebook) if output.output_type == "error"]


async def test_quickstart(url, monkeypatch):
    notebook = await run("quickstart", monkeypatch, INTERPRETER_URL=url, INTERPRETER_NOTEBOOK_TEMPLATE="base")
    printed = texts(notebook)
    assert "running, template base" in printed
    assert "value: 3.875" in printed
    assert "ZeroDivisionError" in printed
    assert "-> step 2" in printed
    assert "timeout | kernel restarted" in printed
    assert "ada,91" in printed


async def test_agent_tool_call(url, monkeypatch):
    printed = texts(await run("agent_tool_call", monkeypatch, INTERPRETER_URL=url))
    assert "execute_code(code, timeout_seconds)" in printed
    assert "TypeError: unsupported operand" in printed
    assert "{'north': 0.0, 'south': 4.4, 'attic': -1.1}" in printed
    assert printed.count("(the tool failed)") == 2


async def test_csv_analysis(url, monkeypatch, data_template):
    notebook = await run("csv_analysis", monkeypatch, INTERPRETER_URL=url, INTERPRETER_NOTEBOOK_TEMPLATE=data_template)
    assert "60,000 orders" in texts(notebook)
    images = [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(images) == 1
    assert base64.b64decode(images[0]).startswith(b"\x89PNG")
