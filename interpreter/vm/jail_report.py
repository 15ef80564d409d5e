"""What of the jail is in force, read off a machine that really runs in it."""

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.settings import Accelerator, Settings
from interpreter.vm.accelerator import probe_machine
from interpreter.vm.priority import MACHINE_OOM_SCORE, NICE, SERVICE_OOM_SCORE, oom_score, put_service_first
from interpreter.vm.read_only import open_read_only
from interpreter.vm.system_calls import ALLOWED

_NAMESPACES: Final = ("mnt", "net", "pid", "ipc", "uts", "cgroup")
_FILTERS: Final = 2
"""The service's filter, and QEMU's own."""
_MOUNTS: Final = ("/", "/dev", "/proc")


@dataclass(frozen=True, slots=True)
class JailPart:
    """One wall of the jail."""

    name: str
    in_force: bool
    detail: str


async def inspect_jail(settings: Settings, accelerator: Accelerator) -> list[JailPart]:
    """Start a machine, look at its process from outside, and end it. Raises MachineError, HostError."""
    async with probe_machine(accelerator, settings) as machine:
        parts = await asyncio.to_thread(_inspect, machine.pid)
    return [*parts, await _read_only_files(), _service_memory()]


def _inspect(pid: int) -> list[JailPart]:
    process = Path("/proc", str(pid))
    status = dict(
        line.split(":\t", 1) for line in (process / "status").read_text("utf-8").splitlines() if ":\t" in line
    )
    limits = {line[:26].strip(): line[26:].split() for line in (process / "limits").read_text("utf-8").splitlines()[1:]}
    memory, size, processes = (limits[f"Max {name}"][0] for name in ("address space", "file size", "processes"))
    shared = [name for name in _NAMESPACES if _namespace("self", name) == _namespace(str(pid), name)]
    # Missing before Linux 5.9.
    filters = int(status.get("Seccomp_filters", "0"))
    return [
        _user(int(status["Uid"].split()[0])),
        JailPart("namespaces", not shared, f"shared with the host: {', '.join(shared)}" if shared else "all its own"),
        JailPart("capabilities", int(status["CapEff"], 16) == 0, f"effective {status['CapEff']}"),
        JailPart("no new privileges", status["NoNewPrivs"] == "1", f"no_new_privs {status['NoNewPrivs']}"),
        JailPart(
            "system calls",
            filters >= _FILTERS,
            f"{filters} filters; the service's own lets {len(ALLOWED)} calls through",
        ),
        _mounts(process),
        JailPart("memory limit", memory != "unlimited", f"{memory} bytes of address space"),
        JailPart("file limit", size != "unlimited", f"{size} bytes of one file"),
        JailPart("process limit", processes != "unlimited", f"{processes} threads"),
        _processors(pid),
        JailPart(
            "memory runs out", oom_score(pid) == MACHINE_OOM_SCORE, f"a machine's oom_score_adj is {oom_score(pid)}"
        ),
    ]


def _user(user: int) -> JailPart:
    own = user not in (0, os.geteuid())
    return JailPart(
        "own user", own, f"user id {user}" if own else f"user id {user}, the service's: only root can give each its own"
    )


def _mounts(process: Path) -> JailPart:
    # The fields are in proc_pid_mountinfo(5): the fifth is the place, the sixth has its options.
    mounts = [line.split() for line in (process / "mountinfo").read_text("utf-8").splitlines()]
    writable = {fields[4] for fields in mounts if "ro" not in fields[5].split(",")} & set(_MOUNTS)
    return JailPart(
        "nothing to write", not writable, f"writable: {', '.join(sorted(writable))}" if writable else "all is read-only"
    )


def _processors(pid: int) -> JailPart:
    nice = os.getpriority(os.PRIO_PROCESS, pid)
    try:
        group = int(Path("/proc", str(pid), "autogroup").read_text("ascii").split()[-1])
    except (OSError, ValueError):
        return JailPart("processors run short", nice == NICE, f"a machine's nice value is {nice}")
    return JailPart(
        "processors run short", nice == group == NICE, f"a machine's nice value is {nice}, its group's {group}"
    )


async def _read_only_files() -> JailPart:
    name = "read-only files"
    with tempfile.NamedTemporaryFile() as file:
        (descriptor,) = await open_read_only([Path(file.name)])
        try:
            os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
        except OSError as error:
            return JailPart(name, True, f"a template's file opened for writing: {error.strerror}")
        finally:
            os.close(descriptor)
    return JailPart(name, False, "a machine could write the files of its template")


def _service_memory() -> JailPart:
    put_service_first()
    score = oom_score(os.getpid())
    told = f"the service's own oom_score_adj is {score}"
    if score > SERVICE_OOM_SCORE:
        told += f", and it may not set {SERVICE_OOM_SCORE} (systemd can: OOMScoreAdjust={SERVICE_OOM_SCORE})"
    return JailPart("the service goes last", score <= SERVICE_OOM_SCORE, told)


def _namespace(pid: str, name: str) -> str:
    return str(Path("/proc", pid, "ns", name).readlink())
