"""Notebooks over REST: cells in order, parameters, errors, outputs, events, limits, and what papermill makes of it."""

from typing import Any

import nbformat
from served import Api

URL = "/v1/notebooks/execute"
EVENTS = {"Accept": "text/event-stream"}


def code(source: str, *tags: str) -> dict[str, Any]:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def notebook_of(*cells: dict[str, Any] | str) -> dict[str, Any]:
    return nbformat.v4.new_notebook(cells=[code(cell) if isinstance(cell, str) else cell for cell in cells])


async def run(api: Api, *cells: dict[str, Any] | str, **more: Any) -> dict[str, Any]:
    answer = await api.client.post(URL, json={"notebook": notebook_of(*cells), **more})
    assert answer.status_code == 200, answer.text
    result = answer.json()
    nbformat.validate(result["notebook"])
    return result


def printed(result: dict[str, Any]) -> list[str]:
    """What each code cell printed."""
    return [
        "".join(output.get("text", "") for output in cell["outputs"])
        for cell in result["notebook"]["cells"]
        if cell["cell_type"] == "code"
    ]


async def test_cells_run_in_order_and_share_variables(api: Api) -> None:
    text = nbformat.v4.new_markdown_cell("# title")
    result = await run(api, text, "x = 1", "x += 1\nprint(x)", "", "x * 21")
    assert (result["status"], result["error"], result["failed_cell"]) == ("ok", None, None)
    cells = result["notebook"]["cells"]
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2, None, 3]
    assert printed(result) == ["", "2\n", "", ""]
    assert cells[4]["outputs"][0]["data"] == {"text/plain": "42"}
    assert {cell["metadata"]["papermill"]["status"] for cell in cells} == {"completed"}
    assert result["notebook"]["metadata"]["language_info"]["name"] == "python"
    assert result["notebook"]["metadata"]["kernelspec"]["name"] == "python3"
    session = (await api.client.get(f"/v1/sessions/{result['session_id']}")).json()
    assert (session["state"], session["reason"]) == ("stopped", "user")
