"""Front ends as their users start them, with the installed kernelspecs: in processes of their own, unmodified."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import jupyter_kernel_client
import nbformat
import pytest
from nbformat import NotebookNode
from started_kernel import LAUNCHED, PROVISIONED, machines_of

pytestmark = pytest.mark.machine

NOTEBOOKS = Path(__file__).parents[2] / "notebooks" / "in_kernel"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
SECONDS = 200
TOKEN = {"token": "secret"}


def jupyter(*arguments: str, said: str = "") -> str:
    """What a command of Jupyter's printed; it ended well and complained of nothing."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], input=said, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data_kernels(kernelspecs: Path, data_template: str) -> dict[str, str]:
    """The kernelspecs of the template that notebooks want."""
    command = [sys.executable, "-c", "from interpreter.cli import main; main()", "kernelspec", "install"]
    more = ["-t", data_template, "--prefix", str(kernelspecs.parents[2]), "--json"]
    installed = json.loads(subprocess.run([*command, *more], capture_output=True, check=True).stdout)
    (one,) = installed["kernelspecs"]
    document = json.loads((Path(one["folder"]) / "kernel.json").read_text())
    del document["metadata"]["kernel_provisioner"]
    (kernelspecs / "launched-data").mkdir()
    (kernelspecs / "launched-data" / "kernel.json").write_text(json.dumps(document))
    return {"provisioned": one["name"], "launched": "launched-data"}


def outputs(notebook: NotebookNode) -> Iterator[NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def told(path: Path) -> str:
    # Together: what is printed comes in as many pieces as it likes.
    notebook = nbformat.read(path, as_version=4)
    return "".join(output.get("text") or str(output.get("data", {})["text/plain"]) for output in outputs(notebook))


@pytest.mark.parametrize("by", ["provisioned", "launched"])
@pytest.mark.parametrize("how", ["nbclient", "papermill"])
@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_runs(data_kernels: dict[str, str], tmp_path: Path, name: str, how: str, by: str) -> None:
    source, target = NOTEBOOKS / f"{name}.ipynb", tmp_path / "out.ipynb"
    if how == "papermill":
        jupyter("papermill", str(source), str(target), "-k", data_kernels[by], "--no-progress-bar")
    else:
        more = ["--NbClientApp.timeout=200", f"--NbClientApp.kernel_name={data_kernels[by]}"]
        run = "import sys; from nbclient.cli import main; sys.exit(main())"
        subprocess.run([sys.executable, "-c", run, *more, str(source), "--output", str(target)], check=True)
    # The outputs that are kept in the repository came to be in the same way.
    assert told(target) == told(source)


def test_papermills_parameters_reach_the_kernel(data_kernels: dict[str, str], tmp_path: Path) -> None:
    target = tmp_path / "out.ipynb"
    more = ["-p", "hours", "48", "-p", "sensors", "2", "--no-progress-bar"]
    jupyter("papermill", str(NOTEBOOKS / "sensors.ipynb"), str(target), "-k", data_kernels["provisioned"], *more)
    assert "96 readings" in told(target)


@pytest.mark.parametrize("kernel", [PROVISIONED, LAUNCHED])
def test_jupyter_run(kernelspecs: Path, kernel: str) -> None:
    assert jupyter("jupyter_client.runapp", "--kernel", kernel, said="print('said', 6 * 7)") == "said 42\n"


@pytest.mark.parametrize("kernel", [PROVISIONED, LAUNCHED])
def test_jupyter_console(kernelspecs: Path, kernel: str) -> None:
    said = "x = 6 * 7\nx\nprint('typed', input('what? '))\nletters\nx + 1\nexit\n"
    printed = jupyter("jupyter_console", "--kernel", kernel, "--simple-prompt", said=said)
    assert "Out[2]: 42" in printed
    assert "typed letters" in printed
    assert "Out[4]: 43" in printed


def test_nbconvert_writes_a_page_from_an_executed_notebook(kernelspecs: Path, tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("print('made', 6 * 7, 'here')")
    (tmp_path / "one.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook(cells=[cell])))
    more = ["--to", "html", "--execute", f"--ExecutePreprocessor.kernel_name={PROVISIONED}"]
    jupyter("nbconvert", *more, str(tmp_path / "one.ipynb"))
    assert "made 42 here" in (tmp_path / "one.html").read_text()


@pytest.fixture(scope="module")
def server(kernelspecs: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[str, int]]:
    """JupyterLab's own server: its URL and process id."""
    folder = tmp_path_factory.mktemp("server")
    options = ["--ServerApp.port=0", "--IdentityProvider.token=secret", "--allow-root", "--no-browser"]
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    about = folder / f"jpserver-{process.pid}.json"
    deadline = time.monotonic() + SECONDS
    while not about.exists():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()  # noqa: PT018
        time.sleep(0.05)
    yield json.loads(about.read_text())["url"].rstrip("/"), process.pid
    process.terminate()
    process.wait(SECONDS)
    said = (folder / "log").read_text()
    assert "never retrieved" not in said, said
    assert "Exception in" not in said, said


@pytest.mark.parametrize("kernel", [PROVISIONED, LAUNCHED])
def test_jupyterlabs_server_starts_restarts_and_shuts_down_kernels(server: tuple[str, int], kernel: str) -> None:
    url, pid = server
    assert not machines_of(pid)
    client = jupyter_kernel_client.JupyterKernelClient(server_url=url, token="secret")
    client.start(kernel)
    try:
        assert len(machines_of(pid)) == 1
        assert client.execute("x = 6 * 7; x")["outputs"][0]["data"]["text/plain"] == "42"
        client.interrupt()
        client.restart()
        assert client.execute("x")["status"] == "error"
        assert client.execute("1 + 1")["outputs"][0]["data"]["text/plain"] == "2"
    finally:
        client.stop()
    assert httpx.get(f"{url}/api/kernels", params=TOKEN, timeout=SECONDS).json() == []
    assert not machines_of(pid)


def test_jupyterlabs_server_lists_the_kernels_with_their_logos(server: tuple[str, int]) -> None:
    url, _ = server
    listed = httpx.get(f"{url}/api/kernelspecs", params=TOKEN, timeout=SECONDS)
    kernel: dict[str, Any] = listed.json()["kernelspecs"][PROVISIONED]
    assert kernel["spec"]["display_name"] == "Python 3 (base, microVM)"
    assert kernel["spec"]["metadata"]["debugger"] is True
    origin = url.split("/", 3)[0] + "//" + url.split("/", 3)[2]
    for path in kernel["resources"].values():
        assert httpx.get(f"{origin}{path}", params=TOKEN, timeout=SECONDS).status_code == 200
    assert set(kernel["resources"]) == {"logo-32x32", "logo-64x64", "logo-svg"}


def test_a_kernel_that_cannot_start_tells_the_front_end_why(server: tuple[str, int], kernelspecs: Path) -> None:
    url, _ = server
    document = json.loads((kernelspecs / PROVISIONED / "kernel.json").read_text())
    document["metadata"]["kernel_provisioner"]["config"]["template"] = "nothing"
    (kernelspecs / "not-built").mkdir()
    (kernelspecs / "not-built" / "kernel.json").write_text(json.dumps(document))
    answer = httpx.post(f"{url}/api/kernels", params=TOKEN, json={"name": "not-built"}, timeout=SECONDS)
    assert answer.status_code == 503
    assert "interpreter template build nothing" in answer.json()["message"]
