"""What a machine's folder says of the machine: ``machine.json``, by which another service finds it again.

It is the service's own word, written before the guest runs, in a folder that nobody else may enter. A process id alone
would be no proof, since another process may have it by now: its start time, its program and its user must fit as well.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from interpreter.errors import MachineDied

RECORD: Final = "machine.json"
FORMAT: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_DELETED: Final = " (deleted)"


class Process(BaseModel):
    """One process, told from all others that had or will have its number. ``started``: in ticks since the boot."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: int
    user: int
    program: str


class MachineRecord(BaseModel):
    """``machine.json``. ``boot``: the host's, after whose end no process is the same."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    boot: str
    qemu: Process
    device: Process
    device_before_ns: int = 0
    """Processor time of the device's processes before this one."""
    vsock_slot: int
    template: str
    content_hash: str
    agent_version: int


def boot_id() -> str:
    """The host's boot, by a name of its own."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def identify(pid: int) -> Process:
    """Note what tells a process from others. Raises MachineDied when it is gone."""
    folder = Path("/proc", str(pid))
    try:
        # The name, in parentheses, may hold anything; the start is the twentieth word behind it (proc(5)).
        words = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        status = (folder / "status").read_text(encoding="utf-8", errors="replace")
        user = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))
        # Of a process that has given up its rights only root may see the program; then it is left out both times.
        program = ""
        with contextlib.suppress(PermissionError):
            # As it was called when it started, though it may have been replaced by an upgrade since.
            program = str((folder / "exe").readlink()).removesuffix(_DELETED)
    except (OSError, IndexError, StopIteration):
        raise MachineDied(f"the machine's process {pid} is gone") from None
    return Process(pid=pid, started=int(words[19]), user=user, program=program)


def open_process(process: Process) -> int:
    """A pidfd of exactly this process. Raises MachineDied when it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        raise MachineDied(f"the machine's process {process.pid} is gone") from None
    try:
        # Whoever has the number now, the descriptor is of it; so what is read now is its own.
        if identify(process.pid) != process:
            raise MachineDied(f"the machine's process {process.pid} is gone; another has its number")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def processor_time(process: Process) -> int:
    """The time that a process had on processors, in ns; 0 when it is gone."""
    try:
        os.close(open_process(process))
        # The first number (kernel: Documentation/scheduler/sched-stats).
        return int(Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[0])
    except (OSError, MachineDied):
        return 0


def write_record(record: MachineRecord, folder: Path) -> None:
    """Write a machine's record, whole or not at all. Raises OSError."""
    new = folder / f".{RECORD}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=2))
    new.replace(folder / RECORD)


def read_record(folder: Path) -> MachineRecord | None:
    """The record in a machine's folder; None when there is none, or none that this version can read."""
    try:
        record = MachineRecord.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
    return record if record.format == FORMAT else None
