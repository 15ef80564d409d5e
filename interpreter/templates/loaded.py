"""A built template, checked and opened: what every restore of it needs, held once for all of them."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from interpreter.settings import Accelerator, Settings
from interpreter.templates.build import ensure_snapshot, verify_build
from interpreter.templates.manifest import Manifest
from interpreter.templates.rootfs import Progress
from interpreter.templates.snapshot import DEVICES, MEMORY, SCRATCH, SNAPSHOT_FOLDER
from interpreter.templates.store import TemplateStore, disk_errors, rebuild_hint
from interpreter.templates.verify import verify_files
from interpreter.vm.command import MachineSpec
from interpreter.vm.memory import load_memory
from interpreter.vm.read_only import open_read_only


@dataclass(frozen=True, slots=True)
class LoadedTemplate:
    """Open descriptors of one template's files; ``memory`` is a sealed memfd."""

    manifest: Manifest
    spec: MachineSpec
    memory: int
    devices: int
    rootfs: int
    scratch: int


@asynccontextmanager
async def load_template(
    settings: Settings, name: str, accelerator: Accelerator, progress: Progress
) -> AsyncGenerator[LoadedTemplate]:
    """Check and open a built template; its snapshot is made again when it does not fit this host.

    Raises TemplateNotFound, TemplateOutdated, SnapshotDamaged, DiskFull, and what making a snapshot raises.
    """
    store = TemplateStore(settings.templates_home)
    async with store.lock(store.find(name).manifest.name):
        # Again under the lock: meanwhile another build may have taken the name.
        built = store.find(name)
        snapshot = await ensure_snapshot(settings, built, accelerator, progress)
        with contextlib.ExitStack() as stack:
            # Opened before they are checked and while the lock is held: what is used is what was checked.
            folder = built.folder / SNAPSHOT_FOLDER
            with disk_errors(folder):
                paths = [folder / MEMORY, folder / DEVICES, folder / SCRATCH, built.folder / "rootfs.squashfs"]
                descriptors = await open_read_only([path for path in paths if path.exists()])
                for descriptor in descriptors:
                    stack.callback(os.close, descriptor)
            await asyncio.to_thread(verify_build, built)
            hint = rebuild_hint(built.manifest.name)
            await asyncio.to_thread(verify_files, folder, snapshot.files, hint=hint)
            memory_file, devices, scratch, rootfs = descriptors
            memory = await asyncio.to_thread(load_memory, memory_file)
            stack.callback(os.close, memory)
            held = stack.pop_all()
    with held:
        spec = built.manifest.spec(accelerator)
        yield LoadedTemplate(built.manifest, spec, memory, devices, rootfs, scratch)
