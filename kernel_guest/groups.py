"""Control groups: what the user's programs may take together, and a way to end all of a kernel's at once.

All that the user runs is below one group with a limit on memory, so that it and not the agent meets the
out-of-memory killer, on processes, so that a fork bomb ends as an error of its own, and with one share of the
processor, so that the agent still gets its own when hundreds of processes want to run. Each kernel has a group in
there that is killed as a whole: when memory runs out a bomb is gone at once, not process by process.
(Kernel: Documentation/admin-guide/cgroup-v2.)
"""

import contextlib
import errno
import os
import time
from pathlib import Path

from kernel_guest import system

_ROOT = Path("/sys/fs/cgroup")
_KEPT_MB = 64
"""Memory that the user's programs leave to the agent and the kernel, in MiB."""
_MAX_PROCESSES = 512
_CONTROLLERS = "+cpu +memory +pids"
_REMOVE_SECONDS = 2.0


class Group:
    """One group for one kernel or for the commands. The folder is None where there are no groups."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def make(cls, parent: Path | None, name: str, *, whole: bool) -> "Group":
        """A group below ``parent``; ``whole``: when memory runs out all of it goes, not one process of it."""
        if parent is None:
            return cls(None)
        folder = parent / name
        folder.mkdir(exist_ok=True)
        if whole:
            (folder / "memory.oom.group").write_text("1", encoding="ascii")
        return cls(folder)

    def add(self, pid: int) -> None:
        """Put a process into it; one that is gone already is left out."""
        if self.folder is not None:
            with contextlib.suppress(ProcessLookupError):
                (self.folder / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def kill(self) -> None:
        """End all that is in it, also what has left its process group."""
        if self.folder is not None:
            (self.folder / "cgroup.kill").write_text("1", encoding="ascii")

    def remove(self) -> None:
        """Remove it; what was killed may need a moment until it is gone."""
        end = time.monotonic() + _REMOVE_SECONDS
        while self.folder is not None and time.monotonic() < end:
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                os.sched_yield()


def set_up_groups() -> Path:
    """Mount the groups and make the one that all of the user's are in; returns its folder. Raises OSError."""
    system.mount("cgroup2", str(_ROOT), "cgroup2")
    user = _ROOT / "user"
    (_ROOT / "cgroup.subtree_control").write_text(_CONTROLLERS, encoding="ascii")
    user.mkdir()
    (user / "cgroup.subtree_control").write_text(_CONTROLLERS, encoding="ascii")
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    (user / "memory.max").write_text(str(pages * size - _KEPT_MB * 1024**2), encoding="ascii")
    (user / "pids.max").write_text(str(_MAX_PROCESSES), encoding="ascii")
    return user
