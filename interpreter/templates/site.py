"""pip's packages put where they would be had pip installed them in the image: modules, programs, shared data.

pip on the host puts everything in one folder, and its programs begin with the path of the host's Python.
"""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Final

PYTHON: Final = "/usr/bin/python3"
"""The guest's Python, by the path that kernels have it from."""

_PROGRAM: Final = """#!{python}
import sys

from {module} import {name}

sys.exit({attribute}())
"""


def place_site(site: Path, local: Path, python: str) -> Path:
    """Move what pip has put into ``site`` below ``local``, the image's /usr/local; returns the folder of the modules.

    ``python`` is the version, as "3.11". ``python`` and pip's programs mean the Python of the kernels.
    """
    packages = local / "lib" / f"python{python}" / "dist-packages"
    packages.parent.mkdir(parents=True)
    site.rename(packages)
    programs = local / "bin"
    programs.mkdir()
    (programs / "python").symlink_to(PYTHON)
    for program in sorted((packages / "bin").glob("*")):
        _place_program(program, programs / program.name)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    for entry in importlib.metadata.distributions(path=[str(packages)]):
        for point in entry.entry_points.select(group="console_scripts"):
            _write_program(point, programs / point.name)
    for shared in ("share", "etc"):
        if (packages / shared).is_dir():
            (packages / shared).rename(local / shared)
    return packages


def _place_program(source: Path, target: Path) -> None:
    content = source.read_bytes()
    first, _, rest = content.partition(b"\n")
    if first.startswith(b"#!") and b"python" in first:
        content = f"#!{PYTHON}\n".encode() + rest
    target.write_bytes(content)
    target.chmod(0o755)


def _write_program(point: importlib.metadata.EntryPoint, target: Path) -> None:
    fields = {"module": point.module, "name": point.attr.partition(".")[0], "attribute": point.attr}
    target.write_text(_PROGRAM.format(python=PYTHON, **fields), encoding="utf-8")
    target.chmod(0o755)
