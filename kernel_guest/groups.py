"""Control groups: what the user's programs may take together, and a way to end all of a kernel's at once.

All that the user runs is below one group with a limit on memory, so that it meets the out-of-memory killer while the
machine as a whole has still some free (else the agent's own pages would be read from disk again and again, and nothing
answers any more), on processes, so that a fork bomb ends as an error of its own, and with one share of the
processor, so that the agent still gets its own when hundreds of processes want to run. Each kernel has a group in
there that is killed as a whole: when memory runs out a bomb is gone at once, not process by process.
(Kernel: Documentation/admin-guide/cgroup-v2.)
"""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path

from kernel_guest import system

_ROOT = Path("/sys/fs/cgroup")
_KEPT_MB = 48
"""Memory that stays free when the user's programs have all that they may have, in MiB."""
_MAX_PROCESSES = 512
_CONTROLLERS = "+cpu +memory +pids"
_REMOVE_SECONDS = 2.0


class Group:
    """One group for one kernel or for the commands. The folder is None where there are no groups."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._kills = 0

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

    def killed_for_memory(self) -> bool:
        """Whether the out-of-memory killer was here since this was asked last."""
        if self.folder is None:
            return False
        events = dict(line.split() for line in (self.folder / "memory.events").read_text(encoding="ascii").splitlines())
        before, self._kills = self._kills, int(events["oom_kill"])
        return self._kills > before

    @contextlib.contextmanager
    def joining(self) -> Generator[Callable[[], None] | None]:
        """What a new process calls to be in it from its first moment on, before it runs another program."""
        if self.folder is None:
            yield None
            return
        descriptor = os.open(self.folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield lambda: _join(descriptor)
        finally:
            os.close(descriptor)

    def is_populated(self) -> bool:
        """Whether there is a process in it that has not ended."""
        return self.folder is not None and "populated 1" in (self.folder / "cgroup.events").read_text(encoding="ascii")

    async def remove(self) -> None:
        """Remove it; what was killed may need a moment until it is gone."""
        end = time.monotonic() + _REMOVE_SECONDS
        while not self.discard() and time.monotonic() < end:  # noqa: ASYNC110  (no event of asyncio's tells it)
            await asyncio.sleep(_REMOVE_SECONDS / 100)

    def discard(self) -> bool:
        """Remove it, when nothing is in it; whether it is gone."""
        try:
            if self.folder is not None:
                self.folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True


def _join(descriptor: int) -> None:
    os.write(descriptor, b"0")


def set_up_groups() -> Path:
    """Mount the groups and make the one that all of the user's are in; returns its folder. Raises OSError."""
    system.mount("cgroup2", str(_ROOT), "cgroup2")
    user = _ROOT / "user"
    (_ROOT / "cgroup.subtree_control").write_text(_CONTROLLERS, encoding="ascii")
    user.mkdir()
    (user / "cgroup.subtree_control").write_text(_CONTROLLERS, encoding="ascii")
    (user / "pids.max").write_text(str(_MAX_PROCESSES), encoding="ascii")
    return user


def limit_memory(user: Path) -> None:
    """Limit the user's programs to what they have and what is free now, but for a reserve. Call it when all is warm.

    Files that are in memory without being mapped count as free: they can be read again. Those that are mapped are the
    programs themselves.
    """
    about = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    have = {name: int(value.split()[0]) * 1024 for name, value in about.items()}
    free = have["MemFree"] + have["Active(file)"] + have["Inactive(file)"] - have["Mapped"]
    current = int((user / "memory.current").read_text(encoding="ascii"))
    limit = max(current + free - _KEPT_MB * 1024**2, have["MemTotal"] // 2)
    (user / "memory.max").write_text(str(limit), encoding="ascii")
