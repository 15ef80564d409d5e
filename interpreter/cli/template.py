"""``interpreter template``: build, list, show, rm."""

import contextlib
import os
import time
from collections.abc import Generator
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from interpreter.cli.terminal import err, out, print_json
from interpreter.settings import Accelerator, Settings
from interpreter.templates.build import build_template
from interpreter.templates.overview import known_templates
from interpreter.templates.rootfs import Progress
from interpreter.templates.snapshot import find_snapshot
from interpreter.templates.store import BuiltTemplate, TemplateStore
from interpreter.vm.accelerator import choose_accelerator


@contextlib.contextmanager
def show_steps(title: str, *, quiet: bool) -> Generator[Progress]:
    """Print each step when the next one begins, with the seconds that it took; a spinner meanwhile on a terminal."""
    started = time.monotonic()
    step: str | None = None
    since = started

    def finish() -> None:
        if step is not None and not quiet:
            err.print(f"  [green]✓[/] {escape(step)} [dim]{time.monotonic() - since:.1f} s[/]")

    with err.status(escape(title)) if not quiet else contextlib.nullcontext() as status:

        def progress(text: str) -> None:
            nonlocal step, since
            finish()
            step, since = text, time.monotonic()
            if status is not None:
                status.update(f"{escape(title)}: {escape(text)}")

        yield progress
        finish()
    if not quiet:
        err.print(f"{escape(title)} [dim]took {time.monotonic() - started:.1f} s[/]")


async def build(settings: Settings, name: str, *, force: bool, json_output: bool) -> BuiltTemplate:
    """Build one template and show how. Raises InterpreterError."""
    answer = await choose_accelerator(settings)
    if answer.warning and not json_output:
        err.print(f"[yellow]warning:[/] {escape(answer.warning)}")
    os.umask(0o077)
    with show_steps(f"building template {name}", quiet=json_output) as progress:
        built = await build_template(settings, name, Accelerator(answer.accelerator), progress, force=force)
    if json_output:
        print_json(_summary(name, built))
    else:
        err.print(f"[green]✓[/] {name} is built ({built.manifest.content_hash[:12]})")
    return built


def list_all(settings: Settings, *, json_output: bool) -> None:
    """List what is defined and what is built."""
    known = known_templates(settings)
    rows = [{**_summary(one.name, one.built), "outdated": one.outdated} for one in known]
    if json_output:
        print_json({"templates": rows})
        return
    table = Table("name", "built", "hash", "memory", "packages", "on disk", box=None)
    for row in rows:
        built = f"{row['created'] or 'no'}{' (outdated)' if row['outdated'] else ''}"
        cells = (row["name"], built, str(row["hash"] or "")[:12], row["memory_mb"], row["packages"])
        table.add_row(*(str(cell if cell is not None else "") for cell in cells), _megabytes(row["disk_bytes"]))
    out.print(table)
    for one in known:
        if one.outdated and one.defined:
            err.print(f"{one.name} is outdated. Build it anew: interpreter template build {one.name}")


def show(settings: Settings, name: str, *, json_output: bool) -> None:
    """Show a build's manifest and that of its snapshot. Raises TemplateNotFound."""
    built = TemplateStore(settings.templates_home).find(name)
    snapshot = find_snapshot(built)
    document = {
        **built.manifest.model_dump(mode="json"),
        "snapshot": snapshot.model_dump(mode="json") if snapshot else None,
        "folder": str(built.folder),
    }
    if json_output:
        print_json(document)
        return
    manifest = built.manifest
    table = Table(show_header=False, box=None)
    table.add_row("name", manifest.name)
    table.add_row("hash", manifest.content_hash)
    table.add_row("created", manifest.created.isoformat(timespec="seconds"))
    table.add_row("kernel", manifest.kernel_version)
    table.add_row("memory", f"{manifest.definition.memory_mb} MB, {manifest.definition.cpus} vCPU")
    table.add_row("folder", str(built.folder))
    table.add_row("on disk", _megabytes(_disk_bytes(built.folder)))
    if snapshot:
        conditions = snapshot.conditions
        table.add_row(
            "snapshot", f"QEMU {conditions.qemu_version}, {conditions.accelerator}, cpu {conditions.cpu_model}"
        )
        table.add_row("cold boot", f"{snapshot.boot_seconds:.1f} s")
    table.add_row(
        "Python", ", ".join(f"{name} {version}" for name, version in sorted(manifest.python_packages.items()))
    )
    table.add_row("Debian", f"{len(manifest.apt_packages)} packages")
    out.print(table)


async def remove(settings: Settings, name: str, *, json_output: bool) -> None:
    """Remove a build. Raises TemplateNotFound."""
    store = TemplateStore(settings.templates_home)
    async with store.lock(name):
        store.remove(name)
    if json_output:
        print_json({"removed": name})
    else:
        err.print(f"[green]✓[/] {escape(name)} is removed")


def _summary(name: str, built: BuiltTemplate | None) -> dict[str, object]:
    manifest = built.manifest if built else None
    return {
        "name": name,
        "built": built is not None,
        "hash": manifest.content_hash if manifest else None,
        "created": manifest.created.isoformat(timespec="seconds") if manifest else None,
        "memory_mb": manifest.definition.memory_mb if manifest else None,
        "packages": len(manifest.python_packages) if manifest else None,
        "disk_bytes": _disk_bytes(built.folder) if built else None,
        "build_seconds": manifest.build_seconds if manifest else None,
    }


def _disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _megabytes(count: object) -> str:
    return f"{count / 1e6:.0f} MB" if isinstance(count, int) else ""
