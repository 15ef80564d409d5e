"""pip's packages lie in an image as if they had been installed in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from interpreter.templates import site as module
from interpreter.templates.site import place_site


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The image's /usr/local, with a Python that is there to run its programs."""
    monkeypatch.setattr(module, "PYTHON", sys.executable)
    site = tmp_path / "site"
    about = site / "found-1.0.dist-info"
    (site / "bin").mkdir(parents=True)
    about.mkdir()
    (site / "found.py").write_text("class group:\n    @staticmethod\n    def main():\n        print('found')\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: found\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[console_scripts]\nfound = found:group.main\n[other]\nno = found:no\n")
    (site / "bin" / "found").write_text("#!/host/of/builder/python\nraise SystemExit('the wrong one')\n")
    (site / "bin" / "script.py").write_text("#!/host/of/builder/python3.11\nprint('a script')\n")
    (site / "bin" / "program").write_bytes(b"\x7fELF\0python")
    (site / "share" / "jupyter").mkdir(parents=True)
    place_site(site, tmp_path / "local", "3.11")
    return tmp_path / "local"


def run(local: Path, name: str) -> str:
    environment = {"PYTHONPATH": str(local / "lib" / "python3.11" / "dist-packages")}
    return subprocess.run([local / "bin" / name], capture_output=True, text=True, check=True, env=environment).stdout


def test_programs_run_with_the_python_of_the_image(local: Path) -> None:
    assert (run(local, "found"), run(local, "script.py")) == ("found\n", "a script\n")
    assert (local / "bin" / "python").readlink() == Path(sys.executable)


def test_no_program_names_the_python_that_built_it(local: Path) -> None:
    assert not [path for path in (local / "bin").iterdir() if b"builder" in path.read_bytes()]
    assert (local / "bin" / "program").read_bytes() == b"\x7fELF\0python"


def test_shared_data_lies_where_jupyter_looks(local: Path) -> None:
    packages = local / "lib" / "python3.11" / "dist-packages"
    assert (local / "share" / "jupyter").is_dir()
    assert sorted(path.name for path in packages.iterdir()) == ["found-1.0.dist-info", "found.py"]
