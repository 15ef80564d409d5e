"""What a machine's priority is worth: programs that never rest share one processor with one in the service's place."""

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from interpreter.vm.priority import behind_the_service, oom_score, put_group_behind, put_service_first
from interpreter.vm.spawn import spawn

PROCESSOR = min(os.sched_getaffinity(0))
WORK_SECONDS = 1.0
WORK = f"import time\nwhile time.process_time() < {WORK_SECONDS}: pass"
SPIN = "print(flush=True)\nwhile True: pass"


def used_seconds(pid: int) -> float:
    """Processor time of a process, by the 14th and 15th fields of proc_pid_stat(5)."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def spinning(before: Sequence[str]) -> asyncio.subprocess.Process:
    """A program that has begun never to rest, on the one processor, in a session of its own as a machine is."""
    process = await spawn([*before, sys.executable, "-c", SPIN], stdout=asyncio.subprocess.PIPE)
    os.sched_setaffinity(process.pid, {PROCESSOR})
    assert process.stdout
    await process.stdout.readline()
    return process


@pytest.mark.parametrize("behind", [True, False])
async def test_a_machine_gets_little_while_the_service_works_and_as_much_as_another(behind: bool) -> None:
    machines = [await spinning(behind_the_service() if behind else ()) for _ in range(2)]
    try:
        if behind:
            for machine in machines:
                await put_group_behind(machine.pid)
        used = [used_seconds(machine.pid) for machine in machines]
        service = await spawn([sys.executable, "-c", WORK])
        os.sched_setaffinity(service.pid, {PROCESSOR})
        assert await service.wait() == 0
        shares = [used_seconds(machine.pid) - before for machine, before in zip(machines, used, strict=True)]
    finally:
        for machine in machines:
            machine.kill()
            await machine.wait()
    # By their weights the service gets three times as much as each of them, and without them no more than each.
    assert (max(shares) < WORK_SECONDS / 1.8) == behind, shares
    assert max(shares) < 3 * min(shares) + 0.1, shares


def test_the_service_never_comes_nearer_to_its_end() -> None:
    before = oom_score(os.getpid())
    child = os.fork()
    if child == 0:
        put_service_first()
        os._exit(0 if oom_score(os.getpid()) <= before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert oom_score(os.getpid()) == before
