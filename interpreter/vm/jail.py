"""The jail around each QEMU: another user, empty namespaces, only the files that it runs from, few system calls.

Guest memory, disks and sockets are passed in as open descriptors, so none of them has a path inside. When the
service is root, QEMU runs as a user id of its own per machine; else it runs as the caller in a user namespace. Nothing
inside can be written: not the files, not /proc (a process's priorities are set there), no memory file system.

bubblewrap is process 1 of the new PID namespace and QEMU its child. All of them are one process group, which is
started in a session of its own and killed as one; and when the service itself is killed, the outer bwrap dies
with the thread that started it (``--die-with-parent``) and takes the namespace with it, unless the machine is to
outlive the service.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.errors import HostError
from interpreter.vm.priority import behind_the_service
from interpreter.vm.programs import files_to_run, find_program

USERS: Final = 0x10000
"""How many user ids machines have, when the service is root."""

_MAX_PROCESSES = 64
"""Threads and processes of one machine: QEMU's main loop, its vCPUs and its pool for disk requests."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one machine may take, in bytes: memory that it maps, and how far it may write into a file."""

    address_space: int
    file_size: int


@dataclass(frozen=True, slots=True)
class Jail:
    """How to confine one QEMU. ``user`` is None when the caller's own id is used (service not root)."""

    user: int | None
    kvm: bool = False
    outlives: bool = False
    """Whether the machine goes on when the process that started it ends."""

    def command(
        self, program: Path, arguments: Sequence[str], limits: Limits, *, system_calls: int, info: int
    ) -> list[str]:
        """The whole command line that runs ``program`` with ``arguments`` in the jail.

        Two descriptors are for bubblewrap: the filter program that it sets (`open_filter`), and where it tells its
        process 1, as JSON.
        """
        # Set from inside, by the process itself: that needs no capability, also in a container.
        limit = [
            str(find_program("prlimit")),
            f"--as={limits.address_space}",
            f"--fsize={limits.file_size}",
            f"--nproc={_MAX_PROCESSES}",
            "--core=0",
        ]
        if self.user is None:
            identity, drop = ["--unshare-user", "--disable-userns"], []
        else:
            # bwrap as root keeps root's id but no capability; setpriv needs these to become another user.
            identity = [part for cap in ("SETUID", "SETGID", "SETPCAP") for part in ("--cap-add", f"CAP_{cap}")]
            drop = [
                str(find_program("setpriv")),
                f"--reuid={self.user}",
                f"--regid={self.user}",
                f"--groups={_kvm_group()}" if self.kvm else "--clear-groups",
                "--bounding-set=-all",
                "--inh-caps=-all",
                "--no-new-privs",
            ]
        files = files_to_run(program, *(Path(part) for part in (*limit[:1], *drop[:1])))
        return [
            *behind_the_service(),
            *(str(find_program("bwrap")), "--info-fd", str(info), "--seccomp", str(system_calls)),
            *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
            *(() if self.outlives else ("--die-with-parent",)),
            *("--clearenv", "--hostname", "jail"),
            *identity,
            *("--proc", "/proc", "--dev", "/dev"),
            *(("--dev-bind", "/dev/kvm", "/dev/kvm") if self.kvm else ()),
            *_bind(files),
            *("--remount-ro", "/proc", "--remount-ro", "/dev", "--remount-ro", "/"),
            "--",
            *drop,
            *limit,
            str(program),
            *arguments,
        ]


def new_jail(first_user: int, *, kvm: bool, outlives: bool = False) -> Jail:
    """A jail for one more machine; as root, under one of `USERS` user ids from ``first_user`` on. Raises HostError."""
    return Jail(_unused_user(first_user) if os.geteuid() == 0 else None, kvm, outlives)


# Counted up by each process from a place of its own, so that two services do not ask for the same one at once.
_numbers = itertools.count(os.getpid() * 256)


def _unused_user(first: int) -> int:
    """The next user id under which nothing runs: neither this service's machines nor those that it may take back."""
    for number in itertools.islice(_numbers, USERS):
        user = first + number % USERS
        try:
            # It fails when there is no process whose priority it could tell.
            os.getpriority(os.PRIO_USER, user)
        except ProcessLookupError:
            return user
    raise HostError(f"all {USERS} user ids for machines are in use", hint="Set INTERPRETER_JAIL_UID")


def _bind(files: Sequence[Path]) -> list[str]:
    # bwrap makes missing parents with mode 0700, which the other user could not enter.
    parents = sorted({str(parent) for file in files for parent in file.parents if str(parent) != "/"})
    made = [part for parent in parents for part in ("--dir", parent)]
    return made + [part for file in files for part in ("--ro-bind", str(file), str(file))]


def _kvm_group() -> int:
    return Path("/dev/kvm").stat().st_gid
