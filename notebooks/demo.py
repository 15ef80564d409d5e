"""``make demo``: from nothing to a plot of the sample CSV, drawn in a microVM; says where the time went.

It uses only the public Python API, so it is also an example of it.
"""

import asyncio
import base64
import logging
import sys
import time
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from interpreter import (
    Accelerator,
    DisplayData,
    Engine,
    Error,
    InterpreterError,
    Settings,
    Stream,
    build_template,
    load_settings,
)

HERE = Path(__file__).parent
TEMPLATE = "python-data"
PLOT = Path("demo-out") / "sales.png"

console = Console(highlight=False, soft_wrap=True)


class Times:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        """``name`` took the time since the last lap."""
        now = time.monotonic()
        self.rows.append((name, now - self._since))
        self._since = now
        console.print(f"[green]✓[/] {name} [dim]{self.rows[-1][1]:.2f} s[/]")

    def table(self) -> Table:
        """All laps."""
        table = Table("where the time went", "seconds", box=None)
        for name, seconds in self.rows:
            table.add_row(name, f"{seconds:8.2f}")
        table.add_row("[bold]in all[/]", f"[bold]{sum(seconds for _, seconds in self.rows):8.2f}[/]")
        return table


async def demo(settings: Settings) -> None:
    """Build, restore, upload, analyse, save."""
    times = Times()
    with console.status("starting") as status:
        async with Engine(settings) as engine:
            if engine.accelerator.warning:
                console.print(f"[yellow]warning:[/] {engine.accelerator.warning}")
            times.lap("look at the host")
            accelerator = Accelerator(engine.accelerator.accelerator)
            await build_template(
                settings, TEMPLATE, accelerator, lambda step: status.update(f"building {TEMPLATE}: {step}")
            )
            times.lap(f"template {TEMPLATE}")
            status.update("checking and loading the snapshot")
            await engine.load(TEMPLATE)
            times.lap("check and load the snapshot")
            status.update("restoring a session")
            async with engine.session(template=TEMPLATE) as session:
                times.lap("restore a session, kernel answering")
                await session.upload(HERE / "data" / "sales.csv", "sales.csv")
                times.lap("upload sales.csv")
                status.update("analysing")
                async for output in session.execute((HERE / "sales_analysis.py").read_text(encoding="utf-8")):
                    if isinstance(output, Stream):
                        console.out(output.text, end="")
                    elif isinstance(output, DisplayData) and "image/png" in output.data:
                        PLOT.parent.mkdir(exist_ok=True)
                        PLOT.write_bytes(base64.b64decode(output.data["image/png"]))
                    elif isinstance(output, Error):
                        console.out("\n".join(output.traceback))
                        sys.exit(1)
                times.lap("analyse with pandas, draw with matplotlib")
        times.lap("end the session")
    console.print()
    console.print(times.table())
    console.print(f"\nThe plot is in [bold]{PLOT}[/].")


if __name__ == "__main__":
    # This shows its own progress; the library's log would only repeat it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    try:
        asyncio.run(demo(load_settings()))
    except InterpreterError as error:
        console.print(f"[bold red]error[/] ({error.code}): {error}", markup=True)
        sys.exit(3)
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted.[/] Nothing is left running.")
        sys.exit(130)
