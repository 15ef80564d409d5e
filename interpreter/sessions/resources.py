"""What sessions take of the host: memory and disk; how much is left, and how much of it is to stay so."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.store.records import Reason

MIB: Final = 1024 * 1024


def available_memory() -> int:
    """Bytes that the host can give without swapping (MemAvailable of proc(5))."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that the host has so much of, in bytes."""

    name: str
    available: Callable[[], int]
    held: Callable[[str], int]
    """What the session of an id was last seen to hold."""
    each: int
    """What a new session is expected to take."""
    reserve: int
    """What is to stay free: no session starts that would take of it."""
    reason: Reason
    """Why a session ends that has to give back what it holds."""

    def has_room(self, running: Iterable[str], starting: int) -> bool:
        """Whether one more may start beside those that run, which are still growing, and those that are starting."""
        growth = sum(max(self.each - self.held(session_id), 0) for session_id in running)
        return self.available() - growth - (starting + 1) * self.each >= self.reserve

    @property
    def is_running_out(self) -> bool:
        """Whether half of the reserve is gone, too: somebody has to give back what he holds."""
        return self.available() < self.reserve // 2
