"""Who goes first when processors or memory run short: the service before its machines.

Nice values alone would not do it. Where the system groups processes by their session (sched(7), "The autogroup
feature") a nice value counts within its group only, and every machine is a session of its own; so the group gets the
same value. A machine cannot undo any of it: its /proc is read-only, and its filter lets neither setpriority nor setsid
through.
"""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Final

from interpreter.vm.programs import find_program

NICE: Final = 5
"""Of a machine, where the service has 0: against it each gets a third of its share, among themselves equal shares.

Not more: other work of the host has 0 as well, and would leave a guest so little that it seems dead."""
MACHINE_OOM_SCORE: Final = 500
SERVICE_OOM_SCORE: Final = -500
"""Added to what the host's kernel reckons by when it has to end a process for its memory (proc(5), oom_score_adj)."""

_PROC: Final = Path("/proc")
_AGAIN_SECONDS: Final = 0.1


def first_to_go() -> list[str]:
    """What to put before a command, so that it ends before the service when memory runs out."""
    # By programs and not between fork and exec, where Python with threads may hang. To give up is always allowed.
    return [str(find_program("choom")), f"--adjust={MACHINE_OOM_SCORE}", "--"]


def behind_the_service() -> list[str]:
    """What to put before a command, so that it runs at a machine's priority."""
    return [str(find_program("nice")), f"--adjustment={NICE}", *first_to_go()]


async def put_group_behind(pid: int) -> None:
    """Give the scheduler's group of a process that began a session the nice value of a machine."""
    group = _PROC / str(pid) / "autogroup"
    while True:
        try:
            group.write_text(str(NICE), encoding="ascii")
        except BlockingIOError:
            # For all but root the kernel takes one such change in a tenth of a second.
            await asyncio.sleep(_AGAIN_SECONDS)
        except OSError:
            # No such groups on this system, where nice values count among all; or the process is gone.
            return
        else:
            return


def oom_score(pid: int) -> int:
    """What is added to a process's score. Raises OSError when it is gone."""
    return int((_PROC / str(pid) / "oom_score_adj").read_text(encoding="ascii"))


def put_service_first() -> None:
    """Have the host's kernel end this process as late as its rights allow when memory runs out."""
    for score in (SERVICE_OOM_SCORE, 0):
        if oom_score(os.getpid()) <= score:
            return
        with contextlib.suppress(PermissionError):
            (_PROC / "self" / "oom_score_adj").write_text(str(score), encoding="ascii")
            return
