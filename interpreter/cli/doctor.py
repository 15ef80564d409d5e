"""``interpreter doctor``: what this host has, what it lacks, and what of the jail is in force."""

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from interpreter.cli.terminal import EXIT_FAILED, out, print_json
from interpreter.errors import InterpreterError
from interpreter.settings import Settings
from interpreter.templates.process import require
from interpreter.templates.store import TemplateStore
from interpreter.vm.accelerator import choose_accelerator
from interpreter.vm.jail_report import inspect_jail
from interpreter.vm.programs import find_program, qemu_version

_JAIL_PROGRAMS = ("bwrap", "setpriv", "prlimit", "nice", "choom")
_DISK_WANTED = 8 * 1024**3
_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "missing": "[red]✗[/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    about: str
    state: Literal["ok", "warning", "missing"]
    detail: str


async def doctor(settings: Settings, *, json_output: bool, probe: bool) -> int:
    """Look at everything and print it; the exit code tells whether sessions can run."""
    findings = [_program(settings.qemu, lambda: f"QEMU {qemu_version(find_program(settings.qemu))}")]
    findings += [_program(name, lambda name=name: str(find_program(name))) for name in _JAIL_PROGRAMS]
    findings += [_program(name, lambda name=name: require(name)) for name in ("mmdebstrap", "mksquashfs", "mkfs.ext4")]
    findings.append(_disk(settings.home))
    findings.append(_memory())
    if all(finding.state != "missing" for finding in findings[: 1 + len(_JAIL_PROGRAMS)]):
        try:
            answer = await choose_accelerator(settings, again=probe)
            state = "warning" if answer.warning else "ok"
            findings.append(Finding(f"accelerator {answer.accelerator}", state, answer.warning or answer.reason))
            findings += [
                Finding(f"jail: {part.name}", "ok" if part.in_force else "warning", part.detail)
                for part in await inspect_jail(settings, answer.accelerator)
            ]
        except InterpreterError as error:
            findings.append(Finding("machine", "missing", str(error)))
    for name, built in TemplateStore(settings.templates_home).list().items():
        findings.append(Finding(f"template {name}", "ok", built.manifest.content_hash[:12]))
    if json_output:
        values = settings.model_dump(mode="json")
        print_json({"findings": [asdict(finding) for finding in findings], "settings": values})
    else:
        _print(findings, settings)
    return EXIT_FAILED if any(finding.state == "missing" for finding in findings) else 0


def _print(findings: list[Finding], settings: Settings) -> None:
    table = Table(show_header=False, box=None)
    for finding in findings:
        table.add_row(_MARKS[finding.state], finding.about, escape(finding.detail))
    out.print(table)
    out.print("\n[bold]settings[/]")
    values = Table(show_header=False, box=None)
    for name in type(settings).model_fields:
        values.add_row(f"INTERPRETER_{name.upper()}", escape(str(getattr(settings, name))))
    out.print(values)


def _program(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(Path(name).name, "ok", look())
    except InterpreterError as error:
        return Finding(Path(name).name, "missing", str(error))


def _disk(home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return Finding("disk", "missing", f"{existing} cannot be written")
    free = shutil.disk_usage(existing).free
    state = "ok" if free > _DISK_WANTED else "warning"
    return Finding(
        "disk", state, f"{free / 1e9:.0f} GB free under {existing} (building wants {_DISK_WANTED / 1e9:.0f})"
    )


def _memory() -> Finding:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return Finding("memory", "ok", f"{kilobytes['MemAvailable'] / 1e6:.1f} GB available")
