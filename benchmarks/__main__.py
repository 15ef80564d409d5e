"""``make bench``: measure, print a table against what is wanted, write ``benchmarks/results.json``."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.table import Table

from benchmarks.measure import measure
from benchmarks.report import console, write
from interpreter import Accelerator, Engine, InterpreterError, build_template, load_settings

RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, and the bounds (at most, unless ``at_least``)."""

    about: str
    value: float
    reach: float
    aim: float
    unit: str
    at_least: bool = False

    @property
    def mark(self) -> str:
        """Whether it is where it should be."""

        def within(bound: float) -> bool:
            return self.value >= bound if self.at_least else self.value <= bound

        return "[green]aim[/]" if within(self.aim) else "[green]ok[/]" if within(self.reach) else "[red]missed[/]"


def rows(figures: dict[str, float]) -> list[Row]:
    """The figures against their bounds."""
    cold = figures["cold_boot_s"]
    return [
        Row("restore to running, against cold boot", cold / figures["restore_running_s"], 100, 400, "x faster", True),
        Row(
            "restore to kernel_info, against cold boot",
            cold / figures["restore_kernel_info_s"],
            100,
            100,
            "x faster",
            True,
        ),
        Row("restore to kernel_info", figures["restore_kernel_info_s"], 1e9, 0.4, "s"),
        Row("round trip of 1+1, against inside", figures["round_trip_ratio"], 1.3, 1.1, "x"),
        Row("vsock guest to host, against socket pair", figures["guest_to_host_ratio"], 0.7, 1.0, "x", True),
        Row("vsock host to guest, against socket pair", figures["host_to_guest_ratio"], 0.7, 1.0, "x", True),
        Row("vsock echo of 64 bytes", figures["vsock_echo_s"] * 1000, 3.0, 1.0, "ms"),
        Row("anonymous memory after one cell", figures["anonymous_mb"], 110, 60, "MB"),
        Row("memory of its vsock device's process", figures["device_mb"], 8, 6, "MB"),
        Row("host CPU of an idle session", figures["idle_cpu_percent"], 1.0, 0.2, "% of a core"),
    ]


async def main() -> None:
    """Measure and tell."""
    settings = load_settings()
    template = os.environ.get("BENCH_TEMPLATE", "python-data")
    async with Engine(settings) as engine:
        accelerator = Accelerator(engine.accelerator.accelerator)
        with console.status("building") as status:
            await build_template(settings, template, accelerator, status.update)
            figures = await measure(engine, template, status.update)
    table = Table("what", "measured", "reach", "aim", "", box=None)
    for row in rows(figures):
        reach = "" if row.reach == 1e9 else f"{row.reach:g}"
        table.add_row(row.about, f"{row.value:.2f} {row.unit}", reach, f"{row.aim:g}", row.mark)
    console.print(table)
    write(RESULTS, template, accelerator, figures)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    try:
        asyncio.run(main())
    except InterpreterError as error:
        console.print(f"[bold red]error[/] ({error.code}): {error}")
        sys.exit(3)
