"""Programs of the host that machines need: where they are, which version, which files they load."""

import functools
import re
import shutil
import subprocess
from pathlib import Path

from interpreter.errors import HostError, ProgramMissing

DEBIAN_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "bwrap": "bubblewrap",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "choom": "util-linux",
    "nice": "coreutils",
    "ldd": "libc-bin",
}
_FIRMWARE = (Path("/usr/share/qemu"), Path("/usr/share/seabios"))


@functools.cache
def find_program(name: str) -> Path:
    """Path of a program, by name or path. Raises ProgramMissing that names Debian's package."""
    found = shutil.which(name)
    if found is None:
        package = DEBIAN_PACKAGES.get(Path(name).name)
        hint = f"Install it: apt-get install {package}" if package else f"Set a path to {Path(name).name} that exists"
        raise ProgramMissing(f"{name} is not installed", hint=hint)
    return Path(found)


@functools.cache
def qemu_version(qemu: Path) -> str:
    """QEMU's whole version with the distribution's revision: what a snapshot is bound to."""
    run = subprocess.run([qemu, "--version"], capture_output=True, text=True, timeout=30, check=False)
    match = re.search(r"version (.+)", run.stdout)
    if run.returncode != 0 or match is None:
        raise HostError(f"{qemu} --version failed: {run.stderr.strip()[:200]}", hint="Reinstall QEMU")
    return match.group(1).strip()


@functools.cache
def files_to_run(*programs: Path) -> tuple[Path, ...]:
    """The programs themselves, every shared library that they load, and QEMU's modules and firmware."""
    files = set(programs)
    run = subprocess.run([find_program("ldd"), *programs], capture_output=True, text=True, timeout=30, check=False)
    if run.returncode != 0:
        raise HostError(f"ldd failed: {run.stderr.strip()[:200]}")
    files.update(Path(path) for path in re.findall(r"(?:=> |^\s)(/\S+) \(0x", run.stdout, re.MULTILINE))
    # accel-tcg and the like are loaded by name at run time, so ldd does not see them.
    modules = next((p for p in Path("/usr/lib").glob("*/qemu") if (p / "accel-tcg-x86_64.so").exists()), None)
    files.update(module for module in (modules.glob("accel-*-x86_64.so") if modules else ()))
    files.update(folder for folder in _FIRMWARE if folder.is_dir())
    return tuple(sorted(files))
