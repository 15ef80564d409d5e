"""``interpreter kernelspec`` as a user runs it: what it writes, what Jupyter makes of it, and what it refuses."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

Result = subprocess.CompletedProcess[str]


@pytest.fixture
def home(engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home folder, with nothing of Jupyter's in it."""
    for name in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "XDG_DATA_HOME", "INTERPRETER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("INTERPRETER_HOME", str(settings.home))
    return tmp_path


def kernelspec(*arguments: str) -> Result:
    command = [sys.executable, "-c", "from interpreter.cli import main; main()", "kernelspec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def told(result: Result) -> Any:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_is_installed_for_the_user_listed_and_removed(home: Path) -> None:
    (one,) = told(kernelspec("install", "-t", "base", "--json"))["kernelspecs"]
    folder = home / ".local" / "share" / "jupyter" / "kernels" / "interpreter-base"
    assert one == {
        "name": "interpreter-base",
        "template": "base",
        "display_name": "Python 3 (base, microVM)",
        "url": None,
        "folder": str(folder),
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {path.name for path in folder.iterdir()} == {
        "kernel.json",
        "logo-32x32.png",
        "logo-64x64.png",
        "logo-svg.svg",
    }
    assert told(kernelspec("list", "--json"))["kernelspecs"] == [one]
    assert "interpreter-base" in kernelspec("list").stdout
    spec = KernelSpecManager().get_kernel_spec("interpreter-base")
    assert spec.argv[:6] == [sys.executable, "-P", "-m", "interpreter.jupyter", "-f", "{connection_file}"]
    assert spec.argv[6:] == ["--template", "base"]
    assert spec.interrupt_mode == "signal"
    assert spec.metadata == {
        "debugger": True,
        "kernel_provisioner": {"provisioner_name": "interpreter", "config": {"template": "base"}},
    }
    assert told(kernelspec("remove", "interpreter-base", "--json"))["removed"] == one
    assert not folder.exists()
    assert told(kernelspec("list", "--json"))["kernelspecs"] == []


def test_what_lies_beside_a_notebook_does_not_run_on_the_host(home: Path, tmp_path: Path) -> None:
    assert kernelspec("install", "-t", "base").returncode == 0
    argv = KernelSpecManager().get_kernel_spec("interpreter-base").argv
    ran = tmp_path / "ran"
    for name in ("interpreter", "structlog", "json"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "__init__.py").write_text(f"open({str(ran)!r}, 'w').close()")
    started = subprocess.run([*argv[:4], "--help"], cwd=tmp_path / "folder", capture_output=True, check=True)
    assert b"A kernel in a microVM" in started.stdout
    assert not ran.exists()


def test_every_built_template_gets_one_with_its_name(home: Path) -> None:
    named = {one["template"]: one["name"] for one in told(kernelspec("install", "--json"))["kernelspecs"]}
    assert named["base"] == "interpreter-base"
    assert all(name == f"interpreter-{template}" for template, name in named.items())


def test_names_prefix_and_url_and_an_install_over_an_older_one(home: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    for url in ("http://one:8888", "https://two.example/base"):
        more = ["--name", "Mine", "--display-name", "My <kernel> [x]", "--url", url, "--prefix", str(prefix)]
        assert kernelspec("install", "-t", "anything", *more).returncode == 0
    document = json.loads((prefix / "share" / "jupyter" / "kernels" / "mine" / "kernel.json").read_text())
    assert document["display_name"] == "My <kernel> [x]"
    assert document["argv"][-4:] == ["--template", "anything", "--url", "https://two.example/base"]
    config = document["metadata"]["kernel_provisioner"]["config"]
    assert config == {"template": "anything", "url": "https://two.example/base"}


def test_no_key_is_written_down(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPRETER_API_KEY", "very-secret")
    more = ["--url", "http://127.0.0.1:1", "--prefix", str(tmp_path)]
    assert kernelspec("install", "-t", "base", *more).returncode == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("install", "-t", "nothing"), 3, "interpreter template build nothing"),
        (("install", "-t", "../x"), 3, "cannot be the name of a template"),
        (("install", "-t", "base", "-t", "base2", "--name", "x"), 3, "base2"),
        (("install", "-t", "a", "-t", "b", "--name", "x", "--url", "http://x"), 3, "Give one --template"),
        (("install", "-t", "base", "--name", "a b"), 3, "cannot be the name of a kernelspec"),
        (("install", "-t", "base", "--name", "../../x"), 3, "cannot be the name of a kernelspec"),
        (("install", "-t", "base", "--user", "--sys-prefix"), 3, "Give one of them"),
        (("install", "-t", "base", "--prefix", "/proc/nowhere"), 3, "cannot be written"),
        (("install", "-t", "base", "--url", "ftp://x"), 3, "is not the address of a service"),
        (("install", "--url", "http://127.0.0.1:1"), 3, "no service answers"),
        (("remove", "python3"), 3, "there is no kernelspec 'python3'"),
        (("remove", "../x"), 3, "there is no kernelspec '../x'"),
        (("install", "--nonsense"), 2, "nonsense"),
    ],
)
def test_bad_input_gives_one_clear_error(home: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    result = kernelspec(*arguments)
    assert result.returncode == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_kernelspecs_of_others_and_broken_ones_are_left_alone(home: Path) -> None:
    kernels = home / ".local" / "share" / "jupyter" / "kernels"
    other = {"argv": ["x"], "display_name": "Other", "language": "x", "metadata": {"kernel_provisioner": 5}}
    for name, text in {"other": json.dumps(other), "broken": "{", "list": "[]"}.items():
        (kernels / name).mkdir(parents=True)
        (kernels / name / "kernel.json").write_text(text)
    assert told(kernelspec("list", "--json"))["kernelspecs"] == []
    for name in ("other", "broken", "list"):
        assert kernelspec("remove", name).returncode == 3
        assert (kernels / name).exists()


def test_errors_in_json_carry_their_code(home: Path) -> None:
    result = kernelspec("install", "-t", "nothing", "--json")
    assert json.loads(result.stdout)["error"]["code"] == "template_not_found"
    assert result.returncode == 3


def test_a_folder_that_may_not_be_written_is_told(home: Path) -> None:
    # Nobody makes folders there, not even root.
    result = kernelspec("install", "-t", "base", "--prefix", "/proc")
    assert (result.returncode, "Traceback" in result.stderr) == (3, False)
