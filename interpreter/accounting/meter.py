"""What a machine uses, read from the host's kernel: processor time of its vCPUs and its device, memory of its own.

Of QEMU only the vCPU threads count, and of the device's process what it does for the guest: while a session waits for
input or output none of them runs, and it costs nothing. Memory is what the session alone holds (anonymous pages); what
it shares with its template, or its device's process with the other devices, is not its own.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Reading:
    """A machine's counters: processor time since its start in ns, memory now in bytes."""

    cpu_ns: int
    memory_bytes: int


class Meter:
    """Reads one machine. ``pid`` is QEMU's process id, ``device_pid`` that of its vsock device's process.

    ``before_ns``: processor time of the device's processes that it had before this one.
    """

    def __init__(self, pid: int, device_pid: int, before_ns: int = 0) -> None:
        self._folder = _PROC / str(pid)
        self._device = _PROC / str(device_pid)
        self._threads: list[Path] = []
        self._before_ns = before_ns
        # A new device's process has all its pages from the parent of devices; what it makes of its own comes on top.
        self._shared = 0
        with contextlib.suppress(OSError):
            self._shared = _memory(self._device)

    def read(self) -> Reading | None:
        """The counters now; None when the machine is gone."""
        try:
            if not self._threads:
                self._threads = [*self._vcpu_threads(), self._device]
            # The first number is the time on a processor in ns (kernel: Documentation/scheduler/sched-stats).
            cpu_ns = sum(int((thread / "schedstat").read_text().split()[0]) for thread in self._threads)
            device = max(_memory(self._device) - self._shared, 0)
            return Reading(self._before_ns + cpu_ns, _memory(self._folder) + device)
        except (OSError, ValueError, IndexError):
            return None

    def _vcpu_threads(self) -> list[Path]:
        # QEMU names them "CPU 0/TCG" or "CPU 0/KVM" (-name debug-threads=on).
        return [task for task in (self._folder / "task").iterdir() if (task / "comm").read_text().startswith("CPU ")]


def _memory(folder: Path) -> int:
    for line in (folder / "status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
