"""A device's process moves into its QEMU's jail: the same namespaces, the same user id, no rights of its own.

In QEMU's PID namespace it dies with the machine by itself, and of all processes it can reach that QEMU alone. Joining
takes no right but those that whoever started QEMU has: root's, or those of the user namespace's owner.
"""

import contextlib
import ctypes
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.errors import MachineDied

# linux/sched.h
_NAMESPACES: Final = {"mnt": 0x00020000, "cgroup": 0x02000000, "uts": 0x04000000, "ipc": 0x08000000,
                      "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}  # fmt: skip
# linux/prctl.h
_SET_DUMPABLE, _SET_KEEPCAPS, _CAPBSET_DROP, _SET_NO_NEW_PRIVS = 4, 8, 24, 38
_SET_SECCOMP, _FILTER_MODE, _INSTRUCTION = 22, 2, 8
_CAPABILITY_VERSION_3: Final = 0x20080522
_SYS_PTRACE: Final = 19
_LAST_CAPABILITY: Final = 63

_LIMITS: Final = {
    resource.RLIMIT_AS: 1024**3,
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_FSIZE: 0,
    resource.RLIMIT_NOFILE: 1024,
    resource.RLIMIT_NPROC: 0,
}
"""A guest's streams hold 256 times 2 MiB at most; a descriptor for each of these, and for each that waits."""

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Cell:
    """What is to be taken over from a QEMU: its ids, how it is scheduled, and which namespaces are its own."""

    user: int
    group: int
    nice: int
    oom_score_adj: int
    namespaces: int


def cell_of(pidfd: int) -> Cell:
    """Look at a QEMU from outside of its jail. Raises MachineDied when it has ended."""
    pid = process_of(pidfd)
    folder = Path("/proc", str(pid))
    try:
        status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines() if ":\t" in line)
        # One that is shared with the host is there already, and an ordinary user may not join it.
        kinds = [kind for kind in _NAMESPACES if _namespace(folder, kind) != _namespace(Path("/proc/self"), kind)]
        cell = Cell(
            user=int(status["Uid"].split()[1]),
            group=int(status["Gid"].split()[1]),
            nice=os.getpriority(os.PRIO_PROCESS, pid),
            oom_score_adj=int((folder / "oom_score_adj").read_text()),
            namespaces=sum(_NAMESPACES[kind] for kind in kinds),
        )
    except OSError as error:
        raise MachineDied("the machine ended while its device was started") from error
    # It still runs, so what was read was its own.
    if process_of(pidfd) != pid:
        raise MachineDied("the machine ended while its device was started")
    return cell


def _namespace(process: Path, kind: str) -> Path | None:
    """Which namespace a process is in; None where the system has none of the kind."""
    return (process / "ns" / kind).readlink() if Path("/proc/self/ns", kind).exists() else None


def process_of(pidfd: int) -> int:
    """The process id behind a descriptor, in the namespace of /proc. Raises MachineDied when it has ended."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid" and int(value) > 0:
            return int(value)
    raise MachineDied("the machine has ended")


def join(cell: Cell, pidfd: int) -> None:
    """Move into a QEMU's namespaces; the processes that are forked from now on are in its PID namespace.

    Raises OSError.
    """
    Path("/proc/self/oom_score_adj").write_text(str(cell.oom_score_adj))
    # Where the scheduler has a group for each session, its nice value counts among them (sched(7)).
    os.setsid()
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(cell.nice))
    if _libc.setns(pidfd, cell.namespaces) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the machine's namespaces cannot be joined: {os.strerror(number)}")


def give_up_rights(cell: Cell, system_calls: bytes) -> None:
    """Become QEMU's user, for good and without any capability; limit what this process may take, and call.

    ``system_calls``: the filter program for the kernel (seccomp(2)). Raises OSError.
    """
    # Without Yama two processes of one user may reach each other; with it that takes a capability, which reaches no
    # further than these namespaces.
    kept = 1 << _SYS_PTRACE if _yama_scope() else 0
    for capability in range(_LAST_CAPABILITY + 1):
        # The first that this kernel does not know ends the list.
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    _check(_libc.prctl(_SET_KEEPCAPS, 1, 0, 0, 0), "prctl")
    if os.getuid() != cell.user:
        os.setgroups([])
        os.setresgid(cell.group, cell.group, cell.group)
        os.setresuid(cell.user, cell.user, cell.user)
    os.setpriority(os.PRIO_PROCESS, 0, max(cell.nice, os.getpriority(os.PRIO_PROCESS, 0)))
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)(_CapabilityData(kept, kept, 0))
    _check(_libc.capset(ctypes.byref(header), data), "capset")
    _check(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
    for kind, most in _LIMITS.items():
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))
    program = ctypes.create_string_buffer(system_calls, len(system_calls))
    filtering = _Filter(len(system_calls) // _INSTRUCTION, ctypes.addressof(program))
    _check(_libc.prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.byref(filtering), 0, 0), "prctl")


def _yama_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        return 0


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
