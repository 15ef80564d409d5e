"""What a machine uses, read from the host's kernel: processor time of its vCPUs, and memory that is its own.

Only the vCPU threads count: while a session waits for input or output they do not run, and it costs nothing. Memory
is what the session alone holds (anonymous pages); what it shares with its template is not its own.
"""

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Reading:
    """A machine's counters: processor time since its start in ns, memory now in bytes."""

    cpu_ns: int
    memory_bytes: int


class Meter:
    """Reads one machine. ``pid`` is QEMU's process id."""

    def __init__(self, pid: int) -> None:
        self._folder = _PROC / str(pid)
        self._threads: list[Path] = []

    def read(self) -> Reading | None:
        """The counters now; None when the machine is gone."""
        try:
            if not self._threads:
                self._threads = self._vcpu_threads()
            # The first number is the time on a processor in ns (kernel: Documentation/scheduler/sched-stats).
            cpu_ns = sum(int((thread / "schedstat").read_text().split()[0]) for thread in self._threads)
            return Reading(cpu_ns, self._memory())
        except (OSError, ValueError, IndexError):
            return None

    def _vcpu_threads(self) -> list[Path]:
        # QEMU names them "CPU 0/TCG" or "CPU 0/KVM" (-name debug-threads=on).
        return [task for task in (self._folder / "task").iterdir() if (task / "comm").read_text().startswith("CPU ")]

    def _memory(self) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        return 0
