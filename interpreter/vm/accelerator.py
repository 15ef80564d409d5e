"""Which accelerator works here, found out by booting something, and remembered.

/dev/kvm can be there, open, make a virtual machine and a vCPU, and still never run the guest (nested
virtualisation that is only half there). So the probe boots the same machine as a session's, from a boot sector
that writes one byte to the doorbell, and believes only that byte.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from interpreter.deadline import deadline
from interpreter.errors import MachineError
from interpreter.private import private_home, write_private
from interpreter.settings import Accelerator, AcceleratorChoice, Settings
from interpreter.vm.command import MachineFiles, MachineSpec
from interpreter.vm.jail import new_jail
from interpreter.vm.machine import Machine, MachineStart, start_machine
from interpreter.vm.memory import new_memory
from interpreter.vm.programs import find_program, qemu_version
from interpreter.vm.record import boot_id

PROBE_SECONDS: Final = 5.0
"""KVM shows the byte in well under a second; the firmware alone takes TCG about half of one."""

_DEVICE: Final = Path("/dev/kvm")
_MARK: Final = b"K"
# mov dx, 0x2f8 (the second serial port); mov al, 'K'; out dx, al; hlt; jmp back to the hlt.
_CODE: Final = bytes.fromhex("baf802 b04b ee f4 ebfd")
_BOOT_SECTOR: Final = _CODE.ljust(510, b"\0") + b"\x55\xaa"
_DISK_BYTES: Final = 1024 * 1024
_MEMORY_MB: Final = 64


@dataclass(frozen=True, slots=True)
class AcceleratorAnswer:
    """What machines run on, and why."""

    accelerator: Accelerator
    reason: str

    @property
    def warning(self) -> str | None:
        """What a user should be told; None when all is well."""
        if self.accelerator is Accelerator.KVM:
            return None
        return f"{self.reason}: machines run in software emulation, about 15 times slower than with KVM"


async def choose_accelerator(settings: Settings, *, again: bool = False) -> AcceleratorAnswer:
    """The accelerator for this host: the setting, the kept answer, or a new probe (``again`` forces one)."""
    if settings.accelerator is not AcceleratorChoice.AUTO:
        return AcceleratorAnswer(Accelerator(settings.accelerator), "INTERPRETER_ACCELERATOR is set")
    qemu = find_program(settings.qemu)
    # The boot as well: what held a guest up may have been a host that had much to do, or how it was set up then.
    conditions = [qemu_version(qemu), os.uname().release, boot_id(), os.geteuid() == 0, _device_state()]
    kept_in = settings.home / "accelerator.json"
    if not again and (kept := _read_kept(kept_in, conditions)):
        return kept
    answer = await _probe(settings)
    private_home(settings.home)
    record = {"conditions": conditions, "accelerator": answer.accelerator, "reason": answer.reason}
    write_private(kept_in, json.dumps(record))
    return answer


@asynccontextmanager
async def probe_machine(accelerator: Accelerator, settings: Settings) -> AsyncGenerator[Machine]:
    """A small machine in the same jail as a session's, with nothing but the boot sector. Raises MachineError."""
    spec = MachineSpec(_MEMORY_MB, 1, accelerator)
    with _files() as files:
        jail = new_jail(settings.jail_uid, kvm=spec.uses_kvm)
        async with start_machine(MachineStart(spec, files, jail, find_program(settings.qemu), [])) as (machine, _):
            yield machine


async def boots(accelerator: Accelerator, settings: Settings, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a guest gets as far as running a boot sector. Raises MachineError."""
    async with probe_machine(accelerator, settings) as machine:
        try:
            async with deadline(seconds):
                return await asyncio.get_running_loop().sock_recv(machine.doorbell, 1) == _MARK
        except TimeoutError:
            return False


async def _probe(settings: Settings) -> AcceleratorAnswer:
    if not _DEVICE.exists():
        return AcceleratorAnswer(Accelerator.TCG, "there is no /dev/kvm")
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        return AcceleratorAnswer(Accelerator.TCG, "/dev/kvm may not be opened by this user")
    try:
        # The whole start is under the limit: a half-working KVM can also hold up QEMU before it answers.
        async with deadline(PROBE_SECONDS * 2):
            works = await boots(Accelerator.KVM, settings)
    except MachineError as error:
        if "Permission denied" in error.message:
            why = "machines' user may not open /dev/kvm (its group needs rw: chgrp kvm /dev/kvm; chmod 660 /dev/kvm)"
            return AcceleratorAnswer(Accelerator.TCG, why)
        return AcceleratorAnswer(Accelerator.TCG, f"QEMU cannot use /dev/kvm ({error.message[:200]})")
    except TimeoutError:
        works = False
    if works:
        return AcceleratorAnswer(Accelerator.KVM, "a guest boots under KVM")
    return AcceleratorAnswer(
        Accelerator.TCG, f"/dev/kvm opens, but a guest did not boot under it within {PROBE_SECONDS:g} s"
    )


@contextlib.contextmanager
def _files() -> Generator[MachineFiles]:
    with contextlib.ExitStack() as stack:

        def memory_file(size: int) -> int:
            descriptor = new_memory(size)
            stack.callback(os.close, descriptor)
            return descriptor

        boot_disk = memory_file(_DISK_BYTES)
        os.pwrite(boot_disk, _BOOT_SECTOR, 0)
        # QEMU takes a disk for reading only from a descriptor that is open for reading only.
        rootfs = os.open(f"/proc/self/fd/{boot_disk}", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, rootfs)
        yield MachineFiles(memory_file(_MEMORY_MB * 1024**2), rootfs, memory_file(_DISK_BYTES))


def _device_state() -> list[int] | None:
    try:
        state = _DEVICE.stat()
    except OSError:
        return None
    # Not its mode alone: a user may have been added to its group.
    return [state.st_mode, state.st_uid, state.st_gid, os.access(_DEVICE, os.R_OK | os.W_OK)]


def _read_kept(path: Path, conditions: list[Any]) -> AcceleratorAnswer | None:
    try:
        record = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        if record["conditions"] == conditions:
            return AcceleratorAnswer(Accelerator(record["accelerator"]), str(record["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Never written, or by another version: the probe runs again.
        return None
    return None
