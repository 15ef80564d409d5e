"""Makes a template's snapshot: boots its root file system, waits for a warm kernel, keeps memory, disk and devices."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import TemplateBuildFailed
from interpreter.private import new_private
from interpreter.settings import Settings
from interpreter.templates.manifest import (
    SNAPSHOT_MANIFEST,
    Conditions,
    Manifest,
    Snapshot,
    conditions_of,
    read_json,
    record_file,
    write_json,
)
from interpreter.templates.process import require, run_program
from interpreter.templates.rootfs import Progress
from interpreter.templates.store import BuiltTemplate, disk_errors
from interpreter.vm.command import MachineFiles, MachineSpec, boot_arguments
from interpreter.vm.jail import new_jail
from interpreter.vm.machine import Machine, MachineStart, start_machine
from interpreter.vm.memory import load_memory, new_memory, save_memory
from interpreter.vm.programs import find_program, qemu_version
from interpreter.vm.read_only import open_read_only
from interpreter.vm.snapshot import save_devices

SNAPSHOT_FOLDER: Final = "snapshot"
MEMORY, DEVICES, SCRATCH = "memory", "devices", "scratch"
_LINE_LIMIT: Final = 4096


def current_conditions(settings: Settings, spec: MachineSpec) -> Conditions:
    """What a snapshot must have been made under to be loaded here and now."""
    return conditions_of(spec, qemu_version(find_program(settings.qemu)))


def find_snapshot(built: BuiltTemplate) -> Snapshot | None:
    """The snapshot of a build, whatever it was made under; None when there is none. Raises SnapshotDamaged."""
    try:
        return read_json(Snapshot, built.folder / SNAPSHOT_FOLDER / SNAPSHOT_MANIFEST)
    except FileNotFoundError:
        return None


async def make_snapshot(
    folder: Path, manifest: Manifest, spec: MachineSpec, settings: Settings, progress: Progress
) -> Snapshot:
    """Boot the build in ``folder`` and put its snapshot there, in place of an older one.

    Raises TemplateBuildFailed with the guest's last words, MachineStartFailed, DiskFull.
    """
    conditions = current_conditions(settings, spec)
    with disk_errors(folder), _replacing(folder / SNAPSHOT_FOLDER) as target:
        progress("first boot: kernel and warm-up")
        scratch = target / SCRATCH
        await make_scratch(scratch, manifest.definition.scratch_gb)
        started = time.monotonic()
        async with _boot(folder, scratch, spec, settings) as (machine, memory):
            await _wait_ready(machine, settings.boot_timeout)
            boot_seconds = time.monotonic() - started
            progress("snapshot")
            with new_private(target / DEVICES) as devices:
                await save_devices(machine, devices.fileno())
            with new_private(target / MEMORY) as file:
                await asyncio.to_thread(save_memory, memory, file.fileno())
        records = {name: await asyncio.to_thread(record_file, target / name) for name in (MEMORY, DEVICES, SCRATCH)}
        snapshot = Snapshot(conditions=conditions, boot_seconds=round(boot_seconds, 2), files=records)
        write_json(snapshot, target / SNAPSHOT_MANIFEST)
    return snapshot


async def measure_boot(built: BuiltTemplate, spec: MachineSpec, settings: Settings) -> float:
    """Boot a build as its snapshot was made, keep nothing; returns the seconds from power-on to a warm kernel."""
    with tempfile.TemporaryDirectory(dir=settings.home) as folder:
        scratch = Path(folder) / SCRATCH
        await make_scratch(scratch, built.manifest.definition.scratch_gb)
        started = time.monotonic()
        async with _boot(built.folder, scratch, spec, settings) as (machine, _):
            await _wait_ready(machine, settings.boot_timeout)
            return time.monotonic() - started


async def make_scratch(path: Path, size_gb: int) -> None:
    """A sparse disk image with an empty ext4. No journal: it lives no longer than its session."""
    with new_private(path) as file:
        file.truncate(size_gb * 1024**3)
    features = ("-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", "-m", "0")
    await run_program([require("mkfs.ext4"), "-q", *features, "-L", "scratch", path], step="mkfs.ext4")


@asynccontextmanager
async def _boot(
    folder: Path, scratch: Path, spec: MachineSpec, settings: Settings
) -> AsyncGenerator[tuple[Machine, int]]:
    with contextlib.ExitStack() as stack:

        def held(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        memory = held(new_memory(spec.memory_mb * 1024**2))
        (rootfs,) = map(held, await open_read_only([folder / "rootfs.squashfs"]))
        # QEMU opens these two again by their descriptors, as the user that it runs as.
        kernel = held(await asyncio.to_thread(_in_memory, folder / "vmlinuz"))
        initramfs = held(await asyncio.to_thread(_in_memory, folder / "initramfs"))
        start = MachineStart(
            spec=spec,
            files=MachineFiles(memory, rootfs, held(os.open(scratch, os.O_RDWR | os.O_CLOEXEC))),
            jail=new_jail(settings.jail_uid, kvm=spec.uses_kvm),
            qemu=find_program(settings.qemu),
            arguments=boot_arguments(spec, kernel, initramfs),
            inherited=(kernel, initramfs),
            shared_memory=True,
        )
        async with start_machine(start) as (machine, _):
            yield machine, memory


def _in_memory(path: Path) -> int:
    with path.open("rb") as file:
        return load_memory(file.fileno())


async def _wait_ready(machine: Machine, seconds: float) -> None:
    """Wait for the guest's one line on the doorbell. Raises TemplateBuildFailed with the console's end."""
    loop = asyncio.get_running_loop()
    line = b""

    async def read_line() -> None:
        nonlocal line
        while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
            piece = await loop.sock_recv(machine.doorbell, _LINE_LIMIT)
            if not piece:
                return
            line += piece

    try:
        async with deadline(seconds):
            await read_line()
    except TimeoutError:
        line = f"it was not ready within {seconds:g} s".encode()
    if line == b"ready\n":
        return
    console = "" if machine.has_ended else "\n".join((await machine.console()).splitlines()[-20:])
    reason = line.decode(errors="replace").strip() or "the machine ended"
    raise TemplateBuildFailed(
        f"the guest did not come up: {reason}\n{console}", hint="Look at the template's warm-up code and packages"
    )


@contextmanager
def _replacing(folder: Path) -> Generator[Path]:
    """A new folder that takes the place of ``folder`` when the block ends well."""
    new = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    new.mkdir(mode=0o700)
    try:
        yield new
        old = folder.with_name(f"{new.name}-old")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)
