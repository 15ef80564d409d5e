"""Notebooks over REST: cells in order, parameters, errors, outputs, events, limits, and clients that go away."""

import asyncio
import json
from typing import Any

import httpx
import nbformat
import pytest
from served import SECONDS, Api

pytestmark = pytest.mark.machine

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


async def test_parameters_come_after_the_cell_that_declares_them(api: Api, shared: str) -> None:
    cells = ("import math", code("alpha, name = 1, ''", "parameters"), "print(alpha, name, math.isnan(odd))")
    body = {"notebook": notebook_of(*cells), "session_id": shared}
    parameters = '{"alpha": 0.5, "name": "\\u00e4 \\"q\\"", "odd": NaN}'
    content = json.dumps(body)[:-1] + f', "parameters": {parameters}}}'
    answer = await api.client.post(URL, content=content, headers={"Content-Type": "application/json"})
    # Not Python's own NaN, which other parsers of JSON do not take.
    result = json.loads(answer.text, parse_constant=pytest.fail)
    assert printed(result)[-1] == '0.5 ä "q" True\n'
    injected = result["notebook"]["cells"][2]
    assert injected["metadata"]["tags"] == ["injected-parameters"]
    assert injected["source"] == '# Parameters\nalpha = 0.5\nname = "\\xe4 \\"q\\""\nodd = float(\'nan\')\n'
    metadata = result["notebook"]["metadata"]["papermill"]
    assert metadata["parameters"] == {"alpha": 0.5, "name": 'ä "q"', "odd": None}
    again = await run(
        api, *result["notebook"]["cells"], session_id=shared, parameters={"alpha": 2, "name": "", "odd": 1}
    )
    assert len(again["notebook"]["cells"]) == 4
    assert printed(again)[-1] == "2  False\n"


async def test_the_first_cell_that_raises_ends_it(api: Api, shared: str) -> None:
    result = await run(api, "print(1)", "1 / 0", "print(3)", session_id=shared)
    assert (result["status"], result["failed_cell"], result["error"]["ename"]) == ("error", 1, "ZeroDivisionError")
    assert printed(result) == ["1\n", "", ""]
    cells = result["notebook"]["cells"]
    assert cells[1]["outputs"][0]["output_type"] == "error"
    assert [cell["execution_count"] for cell in cells] == [1, 2, None]
    about = [cell["metadata"]["papermill"] for cell in cells]
    assert [(one["status"], one["exception"]) for one in about] == [
        ("completed", False),
        ("failed", True),
        ("pending", None),
    ]
    assert result["notebook"]["metadata"]["papermill"]["exception"] is True


async def test_errors_that_are_allowed_and_cells_that_are_skipped(api: Api, shared: str) -> None:
    result = await run(api, "1 / 0", "print(2)", session_id=shared, allow_errors=True)
    assert (result["status"], printed(result)) == ("ok", ["", "2\n"])
    cells = (code("1 / 0", "raises-exception"), code("print('no')", "skip-execution"), "print(3)")
    result = await run(api, *cells, session_id=shared)
    assert (result["status"], printed(result)) == ("ok", ["", "", "3\n"])
    assert [cell["execution_count"] for cell in result["notebook"]["cells"]] == [1, None, 2]
    result = await run(api, "import sys\nsys.exit(0)", "print('no')", session_id=shared)
    assert (result["status"], result["error"], printed(result)[1]) == ("ok", None, "")
    result = await run(api, "import sys\nsys.exit(2)", session_id=shared)
    assert (result["status"], result["error"]["ename"]) == ("error", "SystemExit")


async def test_a_cell_past_its_timeout_ends_it(api: Api, session_id: str) -> None:
    result = await run(api, "print(1)", "while True: pass", "print(3)", session_id=session_id, timeout=5)
    assert (result["status"], result["failed_cell"], result["error"]["code"]) == ("timeout", 1, "execution_timeout")
    assert printed(result)[0] == "1\n"
    about = [cell["metadata"]["papermill"]["status"] for cell in result["notebook"]["cells"]]
    assert about == ["completed", "failed", "pending"]
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('x', flush=True)\nwhile True: pass"
    result = await run(api, stubborn, session_id=session_id, context_id="main", timeout=5, allow_errors=True)
    assert (result["status"], printed(result)) == ("timeout", ["x\n"])
    assert "restarted" in result["error"]["hint"]
    assert await api.printed(session_id, "print(1)") == "1\n"


async def test_a_kernel_that_dies_gives_the_notebook_so_far(api: Api, session_id: str) -> None:
    died = "import os\nos._exit(3)"
    result = await run(api, "print(1)", died, "print(3)", session_id=session_id)
    assert (result["status"], result["failed_cell"], result["error"]["code"]) == ("kernel_died", 1, "kernel_died")
    assert printed(result) == ["1\n", "", ""]
    contexts = (await api.client.get(f"/v1/sessions/{session_id}/contexts")).json()["contexts"]
    assert contexts == [{"context_id": "main"}]


async def test_a_session_that_ends_gives_the_notebook_so_far(api: Api, session_id: str) -> None:
    running = asyncio.create_task(
        run(api, "print(1)", "open('begun', 'w').close()\nimport time\ntime.sleep(600)", session_id=session_id)
    )
    await appears(api, session_id, "begun")
    await api.client.delete(f"/v1/sessions/{session_id}")
    result = await running
    assert (result["status"], result["failed_cell"]) == ("failed", 1)
    assert (result["error"]["code"], result["error"]["message"]) == ("session_ended", "the session was stopped")
    assert printed(result)[0] == "1\n"


async def test_displays_are_updated_across_cells_and_cleared(api: Api, shared: str) -> None:
    first = "from IPython.display import clear_output, display\nhandle = display('old', display_id=True)\nprint('kept')"
    cleared = "print('gone')\nclear_output()\nprint('a')\nclear_output(wait=True)\nprint('b')\nhandle.update('new')"
    result = await run(api, first, cleared, session_id=shared)
    shown, kept = result["notebook"]["cells"][0]["outputs"]
    assert (shown["output_type"], shown["data"]["text/plain"], kept["text"]) == ("display_data", "'new'", "kept\n")
    assert printed(result)[1] == "b\n"


async def test_output_past_the_limit_is_cut_and_says_so(api: Api, session_id: str) -> None:
    long = "for _ in range(300): print('x' * 99_999, flush=True)"
    result = await run(api, long, "print('after')", session_id=session_id, context_id="main")
    assert (result["status"], result["truncated"], printed(result)[1]) == ("ok", True, "after\n")
    assert len(printed(result)[0]) <= 10_000_100
    assert printed(result)[0].endswith("[Output past 10000000 bytes was left out.]\n")


async def test_a_given_session_keeps_its_kernel_unless_told_otherwise(api: Api, session_id: str) -> None:
    await api.run(session_id, "mine = 1")
    result = await run(api, "print('mine' in globals())", "theirs = 2", session_id=session_id)
    assert (result["session_id"], printed(result)[0]) == (session_id, "False\n")
    assert await api.printed(session_id, "print('theirs' in globals())") == "False\n"
    result = await run(api, "print(mine)", "theirs = 2", session_id=session_id, context_id="main")
    assert printed(result)[0] == "1\n"
    assert await api.printed(session_id, "print(theirs)") == "2\n"
    contexts = (await api.client.get(f"/v1/sessions/{session_id}/contexts")).json()["contexts"]
    assert contexts == [{"context_id": "main"}]


async def test_notebooks_at_once_have_kernels_of_their_own(api: Api, session_id: str) -> None:
    cells = ("parts = []", "parts.append(number)", "print(parts)")
    wanted = [run(api, *cells, session_id=session_id, parameters={"number": number}) for number in range(4)]
    results = await asyncio.gather(*wanted, run(api, *cells, parameters={"number": 4}))
    assert [printed(result)[-1] for result in results] == [f"[{number}]\n" for number in range(5)]
    contexts = (await api.client.get(f"/v1/sessions/{session_id}/contexts")).json()["contexts"]
    assert contexts == [{"context_id": "main"}]


async def test_an_output_that_is_nested_deep_does_no_harm(api: Api, shared: str) -> None:
    deep = "from IPython.display import display\nv = 1\nfor _ in range(300): v = [v]\n"
    result = await run(api, deep + "display({'application/json': v}, raw=True)", "print(2)", session_id=shared)
    assert (result["status"], printed(result)[1]) == ("ok", "2\n")
    assert "lists and objects in each other" in printed(result)[0]


async def test_a_notebook_of_the_session_and_the_file_that_it_becomes(api: Api, shared: str) -> None:
    files = f"/v1/sessions/{shared}/files/content"
    content = nbformat.writes(nbformat.from_dict(notebook_of("open('beside.txt', 'w').close()\nprint(name)")))
    await api.client.put(files, params={"path": "in/a.ipynb"}, content=content.encode())
    body = {"path": "in/a.ipynb", "session_id": shared, "output_path": "out/b.ipynb", "parameters": {"name": "Ada"}}
    result = (await api.client.post(URL, json=body)).json()
    assert (result["status"], printed(result)) == ("ok", ["", "Ada\n"])
    written = await api.client.get(files, params={"path": "out/b.ipynb"})
    assert nbformat.reads(written.text, as_version=4) == nbformat.from_dict(result["notebook"])
    assert result["notebook"]["metadata"]["papermill"]["input_path"] == "in/a.ipynb"
    body["output_path"] = "/proc/nothing"
    result = (await api.client.post(URL, json=body)).json()
    assert (result["status"], result["failed_cell"], printed(result)) == ("failed", None, ["", "Ada\n"])


async def test_one_that_is_large_for_its_outputs_runs_from_a_body_and_from_a_file(api: Api, shared: str) -> None:
    cell = code("print(name)")
    cell["outputs"] = [nbformat.v4.new_output("stream", name="stdout", text="x" * 3_000_000)]
    files = f"/v1/sessions/{shared}/files/content"
    content = nbformat.writes(nbformat.from_dict(notebook_of(cell)))
    await api.client.put(files, params={"path": "large.ipynb"}, content=content.encode())
    given = {"session_id": shared, "parameters": {"name": "Ada"}}
    results = [
        await run(api, cell, **given),
        (await api.client.post(URL, json={"path": "large.ipynb", **given})).json(),
        (await api.client.post(URL, json={"notebook": {"cells": 1, "x": "x" * 3_000_000}, **given})).json(),
    ]
    assert [printed(result) for result in results[:2]] == [["", "Ada\n"]] * 2
    assert results[2]["error"]["code"] == "invalid_request"


async def test_events_tell_of_each_cell_while_it_runs(api: Api, shared: str) -> None:
    waits = "print('a', flush=True)\nimport os, time\nwhile not os.path.exists('go-on'): time.sleep(0.01)"
    body = {"notebook": notebook_of(waits, nbformat.v4.new_markdown_cell("m"), "1 / 0", "2"), "session_id": shared}
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(SECONDS), api.client.stream("POST", URL, json=body, headers=EVENTS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                if seen[-1]["type"] == "stream":
                    # The cell waits for this file: what came before came while it ran.
                    url = f"/v1/sessions/{shared}/files/content"
                    await api.client.put(url, params={"path": "go-on"}, content=b"")
    assert [event["type"] for event in seen] == [
        *("started", "cell_started", "stream", "cell_done", "cell_started", "cell_done"),
        *("cell_started", "error", "cell_done", "done"),
    ]
    assert seen[0]["cells"] == 4
    assert (seen[1]["index"], seen[1]["id"]) == (0, body["notebook"]["cells"][0]["id"])
    assert (seen[2]["index"], seen[2]["text"]) == (0, "a\n")
    assert [event["status"] for event in seen if event["type"] == "cell_done"] == ["ok", "skipped", "error"]
    done = seen[-1]
    assert (done["status"], done["failed_cell"], printed(done)[0]) == ("error", 2, "a\n")
    nbformat.validate(done["notebook"])


@pytest.mark.parametrize("headers", [EVENTS, {}], ids=["events", "answer"])
async def test_a_client_that_goes_away_interrupts_the_cell(api: Api, session_id: str, headers: dict[str, str]) -> None:
    source = "try:\n    open('begun', 'w').close()\n    while True: pass\nexcept KeyboardInterrupt:\n    stopped = True"
    body = {"notebook": notebook_of(source, "after = True"), "session_id": session_id, "context_id": "main"}
    await leave(api, body, headers, session_id)
    assert await api.printed(session_id, "print(stopped, 'after' in globals())") == "True False\n"


@pytest.mark.parametrize("headers", [EVENTS, {}], ids=["events", "answer"])
async def test_a_client_that_goes_away_ends_what_was_opened(api: Api, session_id: str, headers: dict[str, str]) -> None:
    source = "open('begun', 'w').close()\nwhile True: pass"
    await leave(api, {"notebook": notebook_of(source), "session_id": session_id}, headers, session_id)
    async with asyncio.timeout(SECONDS):
        while len((await api.client.get(f"/v1/sessions/{session_id}/contexts")).json()["contexts"]) > 1:
            continue
    assert await api.printed(session_id, "print(1)") == "1\n"


async def test_a_client_that_goes_away_ends_the_session_of_its_notebook(api: Api) -> None:
    body = {"notebook": notebook_of("print('go', flush=True)\nwhile True: pass"), "env": {"LEFT": "1"}}
    url = "/v1/sessions"
    async with asyncio.timeout(SECONDS), httpx.AsyncClient(base_url=api.client.base_url) as client:
        async with client.stream("POST", URL, json=body, headers=EVENTS, timeout=SECONDS) as response:
            async for line in response.aiter_lines():
                if '"go' in line:
                    break
        while any(
            one["env"] == ["LEFT"]
            for one in (await api.client.get(url, params={"state": "running"})).json()["sessions"]
        ):
            continue


async def appears(api: Api, session_id: str, path: str) -> None:
    """Return when a file is there."""
    url = f"/v1/sessions/{session_id}/files/entry"
    async with asyncio.timeout(SECONDS):
        while (await api.client.get(url, params={"path": path})).status_code != 200:
            continue


async def leave(api: Api, body: dict[str, Any], headers: dict[str, str], session_id: str) -> None:
    """Have a notebook run, and go away when it has made the file ``begun``."""

    async def send() -> None:
        async with httpx.AsyncClient(base_url=api.client.base_url, headers=headers) as client:
            await client.post(URL, json=body, timeout=SECONDS)

    leaving = asyncio.create_task(send())
    await appears(api, session_id, "begun")
    leaving.cancel()


V3 = {
    "nbformat": 3,
    "nbformat_minor": 0,
    "metadata": {"name": "old"},
    "worksheets": [
        {
            "cells": [
                {"cell_type": "heading", "level": 2, "metadata": {}, "source": "Title"},
                {
                    "cell_type": "code",
                    "collapsed": False,
                    "input": ["x = 2\n", "print(x)"],
                    "language": "python",
                    "metadata": {},
                    "outputs": [],
                    "prompt_number": 7,
                },
            ],
            "metadata": {},
        }
    ],
}


async def test_a_notebook_of_format_3_is_upgraded(api: Api, shared: str) -> None:
    answer = await api.client.post(URL, json={"notebook": V3, "session_id": shared})
    result = answer.json()
    nbformat.validate(result["notebook"])
    title, cell = result["notebook"]["cells"]
    assert (title["cell_type"], title["source"], cell["outputs"][0]["text"]) == ("markdown", "## Title", "2\n")
    assert (result["notebook"]["nbformat"], result["notebook"]["nbformat_minor"]) == (4, 5)


GOOD = notebook_of("1")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "either notebook or path"),
        ({"notebook": GOOD, "path": "a.ipynb"}, 422, "either notebook or path"),
        ({"notebook": []}, 422, "notebook"),
        ({"notebook": {}}, 422, "no nbformat"),
        ({"notebook": {"nbformat": 1, "cells": []}}, 422, "format 1"),
        ({"notebook": {**GOOD, "cells": {}}}, 422, "not a list"),
        ({"notebook": {**GOOD, "cells": [1]}}, 422, "cell 0"),
        ({"notebook": {**GOOD, "cells": [{**GOOD["cells"][0], "source": 5}]}}, 422, "source of cell 0"),
        ({"notebook": {**GOOD, "metadata": {"language_info": {"name": "R"}}}}, 422, "only Python"),
        ({"notebook": GOOD, "path": None, "output_path": "x"}, 422, "session_id"),
        ({"notebook": GOOD, "session_id": "SHARED", "template": "base"}, 422, "the notebook's own"),
        ({"notebook": GOOD, "parameters": {"not a name": 1}}, 422, "not the name of a variable"),
        ({"notebook": GOOD, "parameters": {"class": 1}}, 422, "not the name of a variable"),
        ({"notebook": GOOD, "parameters": []}, 422, "parameters"),
        ({"notebook": GOOD, "timeout": 0}, 422, "timeout"),
        ({"notebook": GOOD, "unknown": 0}, 422, "unknown"),
        ({"notebook": GOOD, "session_id": "nothing"}, 404, "no session"),
        ({"notebook": GOOD, "template": "nothing"}, 404, "nothing"),
        ({"notebook": GOOD, "session_id": "SHARED", "context_id": "nothing"}, 404, "context"),
        ({"notebook": GOOD, "session_id": "SHARED", "output_path": "a\0b"}, 422, "path"),
        ({"path": "nothing.ipynb", "session_id": "SHARED"}, 404, "nothing.ipynb"),
        ({"path": ".", "session_id": "SHARED"}, 422, "not a regular file"),
        ({"path": "/etc/passwd", "session_id": "SHARED"}, 422, "not JSON"),
        ({"path": "/dev/null", "session_id": "SHARED"}, 422, "/dev/null"),
    ],
)
async def test_bad_input_gives_one_clear_error(
    api: Api, shared: str, body: dict[str, Any], status: int, said: str
) -> None:
    body = {key: shared if value == "SHARED" else value for key, value in body.items()}
    answer = await api.client.post(URL, json=body)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True), answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b'{"notebook": ' + b"[" * 100_000, 413),
        (b'{"notebook": {"nbformat": 4, "cells": [' + b"[]," * 2_000_000, 413),
        (b'{"notebook": {"nbformat": ' + b"9" * 5000 + b"}}", 422),
        (b'{"notebook": "\xff"}', 422),
        (b'{"notebook": {"nbformat": 4, "metadata": {"a": "\\ud800"}}}', 422),
        (b" " * 100_000_001, 413),
    ],
    ids=["nothing", "half", "deep", "many", "long number", "no UTF-8", "half a pair", "long"],
)
async def test_a_body_that_is_none_is_refused(api: Api, content: bytes, status: int) -> None:
    answer = await api.client.post(URL, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


async def test_what_jupyter_opens_although_it_is_not_valid_runs(api: Api, shared: str) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": "m", "outputs": []},
        {"cell_type": "heading", "level": 10**12, "metadata": {}, "source": "h"},
        {
            "cell_type": "code",
            "id": "#VSC-1",
            "metadata": {"collapsed": None, "tags": ["a", "a"]},
            "source": "print(1)",
        },
        {"cell_type": "code", "id": "", "metadata": {}, "source": ["print(2)\n", "1 / 0"], "own": {}},
    ]
    notebook = {"nbformat": 4, "nbformat_minor": 2, "metadata": {"kernelspec": {"name": "python3"}}, "cells": cells}
    body = {"notebook": notebook, "session_id": shared, "allow_errors": True}
    answer = await api.client.post(URL, json=body)
    assert answer.status_code == 200, answer.text
    assert printed(answer.json()) == ["1\n", "2\n"]
    nbformat.validate(answer.json()["notebook"])


@pytest.mark.parametrize("source", ["exit()", "quit", "exit(0)", "import sys; sys.exit()"])
async def test_a_notebook_may_end_itself(api: Api, shared: str, source: str) -> None:
    notebook = notebook_of("print(1)", source, "print(2)")
    answer = await api.client.post(URL, json={"notebook": notebook, "session_id": shared})
    assert (answer.json()["status"], answer.json()["error"]) == ("ok", None)
    assert printed(answer.json())[::2] == ["1\n", ""]


async def test_a_long_notebook_is_taken(api: Api, shared: str) -> None:
    image = {"output_type": "display_data", "data": {"image/png": "A" * 40_000_000}, "metadata": {}}
    notebook = notebook_of("print(1)")
    notebook["cells"][0]["outputs"] = [image]
    answer = await api.client.post(URL, json={"notebook": notebook, "session_id": shared})
    assert printed(answer.json()) == ["1\n"]
