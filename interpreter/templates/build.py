"""Builds a template: root file system, snapshot, manifest, and then it is published."""

import asyncio
import shutil
import time

from interpreter.settings import Accelerator, Settings
from interpreter.templates.definition import Template, read_template
from interpreter.templates.manifest import MANIFEST, Manifest, Snapshot, content_hash, record_file, write_json
from interpreter.templates.rootfs import Progress, RootFiles, build_rootfs
from interpreter.templates.snapshot import current_conditions, find_snapshot, make_snapshot
from interpreter.templates.store import BuiltTemplate, TemplateStore, rebuild_hint
from interpreter.templates.verify import verify_files
from kernel_guest.frames import AGENT_VERSION


class Stopwatch:
    """Notes how long each step took, and passes its name on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._step: str | None = None
        self._since = time.monotonic()
        self.seconds: dict[str, float] = {}

    def begin(self, step: str) -> None:
        """``step`` begins now, and the one before it is over."""
        self.end()
        self._step = step
        self._progress(step)

    def end(self) -> None:
        """The step is over."""
        now = time.monotonic()
        if self._step is not None:
            self.seconds[self._step] = round(now - self._since, 2)
        self._step, self._since = None, now


async def build_template(
    settings: Settings, name: str, accelerator: Accelerator, progress: Progress, *, force: bool = False
) -> BuiltTemplate:
    """Build a template, unless the very same is built already; returns it.

    When only its snapshot was made under other conditions, only that is made again. Raises TemplateNotFound,
    TemplateInvalid, TemplateBuildFailed, ProgramMissing, DiskFull; nothing half-built is left.
    """
    template = read_template(settings, name)
    store = TemplateStore(settings.templates_home)
    content = await asyncio.to_thread(content_hash, template)
    async with store.lock(name):
        existing = store.list().get(name)
        if existing is not None and existing.manifest.content_hash == content and not force:
            await ensure_snapshot(settings, existing, accelerator, progress)
            return existing
        watch = Stopwatch(progress)
        with store.build_folder() as folder:
            work = folder / "work"
            work.mkdir()
            files = await build_rootfs(template, work, settings, watch.begin)
            manifest = await _manifest(template, content, files)
            for path in (files.rootfs, files.kernel, files.initramfs):
                path.rename(folder / path.name)
            await asyncio.to_thread(shutil.rmtree, work)
            await make_snapshot(folder, manifest, manifest.spec(accelerator), settings, watch.begin)
            watch.end()
            manifest = manifest.model_copy(update={"build_seconds": watch.seconds})
            write_json(manifest, folder / MANIFEST)
            return await asyncio.to_thread(store.publish, folder, manifest)


async def ensure_snapshot(
    settings: Settings, built: BuiltTemplate, accelerator: Accelerator, progress: Progress
) -> Snapshot:
    """The build's snapshot, made again when it was made under another QEMU, accelerator or processor.

    ``progress`` is told why. Raises TemplateBuildFailed, MachineStartFailed, DiskFull, SnapshotDamaged.
    """
    spec = built.manifest.spec(accelerator)
    conditions = current_conditions(settings, spec)
    snapshot = find_snapshot(built)
    if snapshot is not None and snapshot.conditions == conditions:
        return snapshot
    if snapshot is not None:
        progress(f"the snapshot of {built.manifest.name} does not fit this host any more; it is made again")
        progress(snapshot.conditions.differences(conditions))
    await asyncio.to_thread(verify_build, built)
    return await make_snapshot(built.folder, built.manifest, spec, settings, progress)


def verify_build(built: BuiltTemplate) -> None:
    """Check the files of the build itself. Blocks. Raises SnapshotDamaged."""
    verify_files(built.folder, built.manifest.files, hint=rebuild_hint(built.manifest.name))


async def _manifest(template: Template, content: str, files: RootFiles) -> Manifest:
    images = (files.rootfs, files.kernel, files.initramfs)
    return Manifest(
        agent_version=AGENT_VERSION,
        name=template.name,
        content_hash=content,
        definition=template.definition,
        kernel_version=files.kernel_version,
        apt_packages=files.apt_packages,
        python_packages=files.python_packages,
        build_seconds={},
        files={path.name: await asyncio.to_thread(record_file, path) for path in images},
    )
