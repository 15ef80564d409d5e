"""Kernelspecs installed by the command into a folder of the run's own, and clients of their kernels."""

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from started_kernel import LAUNCHED, PROVISIONED, Started, machines_of

from interpreter import Engine, Settings


@pytest.fixture(scope="session")
def installed(engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run's kernelspecs, which Jupyter does not look into by itself."""
    prefix = tmp_path_factory.mktemp("jupyter")
    kernels = prefix / "share" / "jupyter" / "kernels"
    command = [sys.executable, "-c", "from interpreter.cli import main; main()", "kernelspec", "install"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERPRETER_HOME", str(settings.home))
        patch.delenv("INTERPRETER_URL", raising=False)
        subprocess.run([*command, "-t", "base", "--prefix", str(prefix)], check=True)
    document = json.loads((kernels / PROVISIONED / "kernel.json").read_text())
    del document["metadata"]["kernel_provisioner"]
    (kernels / LAUNCHED).mkdir()
    (kernels / LAUNCHED / "kernel.json").write_text(json.dumps(document))
    return kernels


@pytest.fixture(scope="module")
def kernelspecs(installed: Path, settings: Settings) -> Generator[Path]:
    """The folder of the run's kernelspecs, which Jupyter finds while the tests of a module that want it run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERPRETER_HOME", str(settings.home))
        patch.setenv("JUPYTER_PATH", str(installed.parent))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(installed.parents[2] / "runtime"))
        patch.delenv("INTERPRETER_URL", raising=False)
        yield installed


@pytest.fixture(autouse=True)
def own_machines() -> Callable[[], list[int]]:
    """The machines of this process that a test itself has started: a service that other tests share may have some."""
    others = set(machines_of())
    return lambda: [machine for machine in machines_of() if machine not in others]


@pytest.fixture
def start(kernelspecs: Path) -> Generator[Callable[..., Started]]:
    started: list[Started] = []

    def new(name: str = PROVISIONED, **more: Any) -> Started:
        kernel = Started(name, **more)
        started.append(kernel)
        return kernel

    yield new
    for kernel in started:
        kernel.stop()


@pytest.fixture
def kernel(start: Callable[..., Started]) -> Started:
    return start()
