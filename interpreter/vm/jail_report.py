"""What of the jail is in force, read off a machine that really runs in it."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from interpreter.settings import Accelerator, Settings
from interpreter.vm.accelerator import probe_machine

_NAMESPACES = ("mnt", "net", "pid", "ipc", "uts")


@dataclass(frozen=True, slots=True)
class JailPart:
    """One wall of the jail."""

    name: str
    in_force: bool
    detail: str


async def inspect_jail(settings: Settings) -> list[JailPart]:
    """Start a machine, look at its process from outside, and end it. Raises MachineError."""
    async with probe_machine(Accelerator.TCG, settings) as machine:
        return await asyncio.to_thread(_inspect, machine.pid)


def _inspect(pid: int) -> list[JailPart]:
    process = Path("/proc", str(pid))
    status = dict(
        line.split(":\t", 1) for line in (process / "status").read_text("utf-8").splitlines() if ":\t" in line
    )
    user = int(status["Uid"].split()[0])
    shared = [name for name in _NAMESPACES if _namespace("self", name) == _namespace(str(pid), name)]
    limits = {line[:26].strip(): line[26:].split() for line in (process / "limits").read_text("utf-8").splitlines()[1:]}
    memory, processes = limits["Max address space"][0], limits["Max processes"][0]
    return [
        JailPart("own user", user not in (0, os.geteuid()) or os.geteuid() != 0, f"user id {user}"),
        JailPart("namespaces", not shared, f"shared with the host: {', '.join(shared)}" if shared else "all its own"),
        JailPart("capabilities", int(status["CapEff"], 16) == 0, f"effective {status['CapEff']}"),
        JailPart("no new privileges", status["NoNewPrivs"] == "1", f"no_new_privs {status['NoNewPrivs']}"),
        JailPart("system call filter", status["Seccomp"] == "2", f"seccomp mode {status['Seccomp']}"),
        JailPart("memory limit", memory != "unlimited", f"{memory} bytes of address space"),
        JailPart("process limit", processes != "unlimited", f"{processes} threads"),
    ]


def _namespace(pid: str, name: str) -> str:
    return str(Path("/proc", pid, "ns", name).readlink())
