"""What every benchmark does with its figures: a table on the terminal, and a file beside it."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from interpreter import Accelerator

console: Final = Console(highlight=False, soft_wrap=True)
Figures = dict[str, float]


def show(figures: Figures, wanted: dict[str, str]) -> None:
    """Print figures, and next to them what is wanted of some."""
    table = Table("figure", "measured", "wanted", box=None)
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}", wanted.get(name, ""))
    console.print(table)


def write(file: Path, template: str, accelerator: Accelerator, figures: Figures, **more: object) -> None:
    """Write figures, when they were measured, and on what; ``more`` stands beside them."""
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "accelerator": str(accelerator)}
    document = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "template": template, **machine}
    file.write_text(json.dumps({**document, "figures": figures, **more}, indent=2) + "\n", encoding="utf-8")
    console.print(f"All figures are in [bold]{file}[/].")
