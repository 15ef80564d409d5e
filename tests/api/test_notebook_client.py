"""Notebooks through the clients: in sessions of their own and in one that is there; with asyncio and without."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from served import SECONDS, Api

from interpreter.client import AsyncClient, AsyncSession, Client
from interpreter.errors import FileNotFound, InvalidRequest, NotFound

pytestmark = pytest.mark.machine


@pytest.fixture
async def client(api: Api) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as client:
        yield client


@pytest.fixture
async def session(client: AsyncClient, shared: str) -> AsyncSession:
    return client.session(shared)


def notebook_of(*sources: str) -> dict[str, Any]:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


async def test_a_notebook_gets_a_session_of_its_own(client: AsyncClient, tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook_of("import os\nprint(name, os.environ['PLACE'])"), path)
    result = await client.execute_notebook(path, parameters={"name": "Ada"}, env={"PLACE": "here"}, timeout_seconds=60)
    assert (result.status, result.notebook["cells"][1]["outputs"][0]["text"]) == ("ok", "Ada here\n")
    info = await client.session(result.session_id).info()
    assert (info.state, info.timeout_seconds) == ("stopped", 60)


async def test_a_notebook_runs_in_a_session(session: AsyncSession) -> None:
    await session.upload(json.dumps(notebook_of("print(x)", "1 / 0")).encode(), "notebooks/a.ipynb")
    result = await session.execute_notebook(
        path="notebooks/a.ipynb", parameters={"x": 2}, output_path="notebooks/b.ipynb"
    )
    assert (result.status, result.failed_cell, result.session_id) == ("error", 2, session.id)
    assert (result.error or {})["ename"] == "ZeroDivisionError"
    assert json.loads(await session.download("notebooks/b.ipynb"))["metadata"]["papermill"]["exception"] is True
    result = await session.execute_notebook(notebook_of("1 / 0", "print(1)"), allow_errors=True, context_id=None)
    assert (result.status, result.notebook["cells"][1]["outputs"][0]["text"]) == ("ok", "1\n")
    result = await session.execute_notebook(notebook_of("while True: pass"), timeout=0.5, context_id="main")
    assert (result.status, (result.error or {})["code"]) == ("timeout", "execution_timeout")


async def test_leaving_a_stream_interrupts_the_cell(session: AsyncSession) -> None:
    events: list[str] = []
    async with asyncio.timeout(SECONDS):
        stream = session.stream_notebook(notebook_of("print(1, flush=True)\nwhile True: pass"), context_id="main")
        async with contextlib.aclosing(stream):
            async for event in stream:
                events.append(event["type"])
                if event["type"] == "stream":
                    break
        assert (await session.execute("2")).text == "2"
    assert events == ["started", "cell_started", "stream"]


async def test_errors_are_the_packages_own(client: AsyncClient, session: AsyncSession, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no nbformat"):
        await client.execute_notebook({})
    with pytest.raises(FileNotFound):
        await session.execute_notebook(path="nothing.ipynb")
    with pytest.raises(NotFound):
        await client.session("nothing").execute_notebook(notebook_of("1"))
    (tmp_path / "a.ipynb").write_text("[]")
    with pytest.raises(InvalidRequest, match="is not a notebook"):
        await client.execute_notebook(tmp_path / "a.ipynb")
    with pytest.raises(OSError, match="No such file"):
        await client.execute_notebook(tmp_path / "b.ipynb")


async def test_without_asyncio(api: Api, shared: str) -> None:
    def work() -> None:
        with Client(f"http://127.0.0.1:{api.port}") as client:
            assert client.execute_notebook(notebook_of("x"), parameters={"x": 1}).status == "ok"
            *_, last = client.stream_notebook(notebook_of("1"))
            assert (last["type"], last["status"]) == ("done", "ok")
            session = client.session(shared)
            assert session.execute_notebook(notebook_of("1"), context_id="main").session_id == shared
            for event in session.stream_notebook(
                notebook_of("print(1, flush=True)\nwhile True: pass"), context_id="main"
            ):
                if event["type"] == "stream":
                    break
            assert session.execute("3").text == "3"

    async with asyncio.timeout(2 * SECONDS):
        await asyncio.to_thread(work)
