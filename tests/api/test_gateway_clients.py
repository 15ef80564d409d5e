"""Real clients of the gateway: Jupyter Server's own (as nbclient and papermill use it), and jupyter-kernel-client."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import jupyter_kernel_client
import nbformat
import pytest
from nbformat import NotebookNode
from served import Api, own_home, serve

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

NOTEBOOKS = Path(__file__).parents[2] / "notebooks" / "in_kernel"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
SECONDS = 200
# In a process of its own: Jupyter Server keeps its gateway's address for the whole process.
RUN = """
import sys
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.gateway.managers import GatewayKernelManager
how, url, source, target, kernel, *parameters = sys.argv[1:]
GatewayClient.instance().url = url
# Once an answer takes a second, the client asks its manager in a way that this one lacks (jupyter-server 2.21).
GatewayKernelManager._async_is_alive = GatewayKernelManager.is_alive
manager = "jupyter_server.gateway.managers.GatewayKernelManager"
if how == "papermill":
    import papermill
    parameters = {name: int(value) for name, value in zip(parameters[::2], parameters[1::2])}
    papermill.execute_notebook(
        source, target, parameters, kernel_name=kernel, kernel_manager_class=manager, progress_bar=False
    )
else:
    import nbformat
    from nbclient import NotebookClient
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(notebook, timeout=200, kernel_name=kernel, kernel_manager_class=manager).execute()
    nbformat.write(notebook, target)
"""


@pytest.fixture(scope="module")
async def gateway(
    engine: Engine, settings: Settings, data_template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Api]:
    home = own_home(settings, tmp_path_factory.mktemp("gateway") / "home")
    async with serve(Settings(home=home, default_template=data_template, memory_reserve_mb=256)) as api:
        yield api


async def run(how: str, api: Api, name: str, target: Path, *parameters: str) -> NotebookNode:
    arguments = [how, f"http://127.0.0.1:{api.port}", str(NOTEBOOKS / f"{name}.ipynb"), str(target), "python-data"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, *arguments, *parameters),
        env={**os.environ, "JUPYTER_PLATFORM_DIRS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, said.decode()
    return nbformat.read(target, as_version=4)


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


@pytest.mark.parametrize("how", ["nbclient", "papermill"])
@pytest.mark.parametrize("name", NAMES)
async def test_every_notebook_runs_through_the_gateway(gateway: Api, tmp_path: Path, name: str, how: str) -> None:
    done = await run(how, gateway, name, tmp_path / "out.ipynb")
    kept = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert not [output for output in outputs(done) if output.output_type == "error"]

    def told(notebook: NotebookNode) -> str:
        # Together: what is printed comes in as many pieces as it likes.
        return "".join(output.get("text") or str(output.get("data", {})["text/plain"]) for output in outputs(notebook))

    # The outputs that are kept in the repository came to be in the same way.
    assert told(done) == told(kept)
    # The client shuts its kernel down when it is done.
    assert (await gateway.client.get("/api/kernels")).json() == []


async def test_papermills_parameters_reach_the_kernel(gateway: Api, tmp_path: Path) -> None:
    done = await run("papermill", gateway, "sensors", tmp_path / "out.ipynb", "hours", "48", "sensors", "2")
    assert "96 readings" in "".join(output.get("text", "") for output in outputs(done))


DIES = """
import sys
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.gateway.managers import GatewayKernelManager
import nbformat
from nbclient import NotebookClient
GatewayClient.instance().url = sys.argv[1]
GatewayKernelManager._async_is_alive = GatewayKernelManager.is_alive
cells = ["print('before')", "import os; os._exit(1)", "print('after')"]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
# Without a time limit, as by default: it waits for ever for a reply that does not come.
manager = "jupyter_server.gateway.managers.GatewayKernelManager"
options = {"allow_errors": True} if sys.argv[2] == "goes on" else {}
NotebookClient(notebook, timeout=None, kernel_name="base", kernel_manager_class=manager, **options).execute()
print([output.get("evalue") or output["text"] for cell in notebook.cells for output in cell.outputs])
"""
DIED = "the kernel died (exit status 1); its variables are gone, files are kept"


@pytest.mark.parametrize("way", ["goes on", "ends"])
async def test_nbclient_is_told_that_a_kernel_died(api: Api, way: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DIES, f"http://127.0.0.1:{api.port}", way),
        env={**os.environ, "JUPYTER_PLATFORM_DIRS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    said, complaint = await asyncio.wait_for(process.communicate(), SECONDS)
    if way == "goes on":
        assert said.decode().strip() == str(["before\n", DIED, "after\n"]), complaint.decode()
    else:
        assert process.returncode == 1
        assert f"KernelDied: {DIED}" in complaint.decode()


async def test_jupyter_kernel_client_runs_code_and_shuts_down(gateway: Api) -> None:
    def use() -> None:
        url = f"http://127.0.0.1:{gateway.port}"
        with jupyter_kernel_client.JupyterKernelClient(server_url=url, token="", kernel_name="python-data") as kernel:
            reply = kernel.execute("print('hello'); 6 * 7")
            assert reply["status"] == "ok"
            assert [output["output_type"] for output in reply["outputs"]] == ["stream", "execute_result"]
            kernel.interrupt()
            kernel.restart()
            assert kernel.execute("1")["status"] == "ok"

    await asyncio.to_thread(use)
    assert (await gateway.client.get("/api/kernels")).json() == []
