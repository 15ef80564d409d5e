"""The environment of a kernel: what Python and libraries read only at their start is read again when it changes.

Kernels are forked from a process that started with no user's environment, and a restored one runs already when it gets
its session's. What cannot be made up for then: the hash seed (PYTHONHASHSEED), Python's options that are fixed at its
start (PYTHONOPTIMIZE, PYTHONUTF8, PYTHONMALLOC, ...), and what the dynamic linker reads (LD_LIBRARY_PATH, MALLOC_*).
"""

import contextlib
import importlib
import locale
import multiprocessing.process
import os
import site
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_applied: dict[str, str] = {}


def apply_environment(environment: Mapping[str, str]) -> None:
    """Set the variables that are new or changed since the last call, and have read again what depends on them."""
    changed = {name: value for name, value in environment.items() if _applied.get(name) != value}
    _applied.update(changed)
    before = os.environ.get("PYTHONPATH", "")
    os.environ.update(changed)
    if "PYTHONPATH" in changed:
        _replace_path(before, changed["PYTHONPATH"])
    for names, read in _READERS.items():
        if changed.keys() & names:
            # A value that is no good must not cost the session its kernel; a stock one would warn, or ignore it.
            with contextlib.suppress(ValueError, TypeError, LookupError, ImportError, OSError):
                read()


def settle() -> None:
    """Make a forked process what one would be that was started here: its folder, its arguments, its user's packages."""
    launcher = find_spec("ipykernel_launcher")
    # Without what is meant for ipykernel itself, so that argparse in a cell finds no arguments.
    sys.argv = [(launcher and launcher.origin) or ""]
    multiprocessing.process.ORIGINAL_DIR = str(Path.cwd())  # pyright: ignore[reportAttributeAccessIssue]
    if sys.prefix == sys.base_prefix and not os.environ.get("PYTHONNOUSERSITE"):
        _add_user_packages()
    _read_temporary_folder()


def _add_user_packages() -> None:
    """What pip installs for the user, in its usual place; the fork's parent, which is root's, never looks there."""
    packages = site.getusersitepackages()
    before = (at for at, entry in enumerate(sys.path) if entry.endswith("-packages"))
    sys.path.insert(next(before, len(sys.path)), packages)
    site.ENABLE_USER_SITE = True
    # Also what such packages have in .pth files.
    site.addsitedir(packages)


def _replace_path(before: str, now: str) -> None:
    for entry in _entries(before):
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)
    sys.path[:0] = _entries(now)
    importlib.invalidate_caches()


def _entries(path: str) -> list[str]:
    return list(dict.fromkeys(os.path.abspath(entry) for entry in path.split(os.pathsep) if entry))  # noqa: PTH100


def _read_temporary_folder() -> None:
    tempfile.tempdir = None
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        # Nothing can be written now, for example as the disk is full. The kernel itself needs no more than a name.
        tempfile.tempdir = os.environ.get("TMPDIR", "/tmp")  # noqa: S108


def _read_warnings() -> None:
    private: Any = warnings
    private._processoptions([option for option in os.environ["PYTHONWARNINGS"].split(",") if option])  # noqa: SLF001


def _read_locale() -> None:
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "")


def _read_bytecode_options() -> None:
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.pycache_prefix = os.environ.get("PYTHONPYCACHEPREFIX") or None


def _read_plot_backend() -> None:
    if (matplotlib := sys.modules.get("matplotlib")) and os.environ["MPLBACKEND"]:
        matplotlib.use(os.environ["MPLBACKEND"])


def _read_thread_counts() -> None:
    count = int(os.environ.get("OMP_NUM_THREADS") or os.environ.get("OPENBLAS_NUM_THREADS") or "")
    if (threadpoolctl := sys.modules.get("threadpoolctl")) is not None:
        threadpoolctl.threadpool_limits(count)
    if (pyarrow := sys.modules.get("pyarrow")) is not None and os.environ.get("OMP_NUM_THREADS"):
        pyarrow.set_cpu_count(count)


def _read_sklearn_options() -> None:
    if (sklearn := sys.modules.get("sklearn")) is None:
        return
    if "SKLEARN_ASSUME_FINITE" in os.environ:
        sklearn.set_config(assume_finite=bool(os.environ["SKLEARN_ASSUME_FINITE"]))
    if "SKLEARN_WORKING_MEMORY" in os.environ:
        sklearn.set_config(working_memory=int(os.environ["SKLEARN_WORKING_MEMORY"]))


_READERS: dict[frozenset[str], Callable[[], None]] = {
    frozenset({"TZ"}): time.tzset,
    frozenset({"LANG", "LC_ALL", "LC_CTYPE"}): _read_locale,
    frozenset({"TMPDIR", "TEMP", "TMP"}): _read_temporary_folder,
    frozenset({"PYTHONWARNINGS"}): _read_warnings,
    frozenset({"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"}): _read_bytecode_options,
    frozenset({"MPLBACKEND"}): _read_plot_backend,
    frozenset({"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}): _read_thread_counts,
    frozenset({"SKLEARN_ASSUME_FINITE", "SKLEARN_WORKING_MEMORY"}): _read_sklearn_options,
}
