"""``interpreter session notebook``: a notebook from its first cell to its last, in a session of the service."""

import asyncio
import contextlib
import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from typer.core import TyperCommand

from interpreter.cli.display import Display
from interpreter.cli.terminal import EXIT_CODE_RAISED, EXIT_FAILED, EXIT_TIMEOUT, err, print_json, run_command
from interpreter.errors import ConfigurationError, ServiceError
from interpreter.kernel.outputs import Error
from interpreter.saving import save

if TYPE_CHECKING:
    # Imported where it is used: it takes other commands time that they need not spend.
    from collections.abc import AsyncGenerator

    from interpreter.client import AsyncClient, Event

_PAIRS: Final = ("--parameter", "-p")
_BETWEEN: Final = "\0"
"""What no argument of a command can hold."""
_WORDS: Final[dict[str, Any]] = {"True": True, "False": False, "None": None}


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """What to run and how. ``timeout`` is in seconds, for each cell."""

    file: Path
    session_id: str | None
    template: str | None
    parameters: dict[str, Any]
    timeout: float | None
    allow_errors: bool
    out: Path | None
    json_output: bool


def notebook(
    file: Annotated[Path, typer.Argument(help="FILE.ipynb to run.")],
    session_id: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Session to run it in; one of its own else.")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", "-t", help="Template of its own session.")] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(*_PAIRS, metavar="NAME VALUE", help="Variable, as JSON or text; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the executed notebook.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that each cell may take.")] = None,
    allow_errors: Annotated[bool, typer.Option("--allow-errors", help="Go on after cells that raise.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Run a notebook with parameters, in a clean kernel, and write what came out.

    Exits with 0 when it ended well, 1 when a cell raised, 124 when one ran out of time, 3 when the service failed.
    """
    parameters = dict(map(parameter_of, parameter or []))
    run = NotebookRun(file, session_id, template, parameters, timeout, allow_errors, out, json_output)
    raise typer.Exit(run_command(_run(run), json_output=json_output))


class PairsCommand(TyperCommand):
    """A command whose ``-p`` takes a name and a value, as papermill's does: typer has no repeated options of two."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Make one argument of the two."""
        given = iter(args)
        made: list[str] = []
        for one in given:
            made.append(one)
            if one in _PAIRS:
                made.append(_BETWEEN.join(islice(given, 2)))
        return super().parse_args(ctx, made)


def parameter_of(pair: str) -> tuple[str, Any]:
    """A parameter's name and value: JSON, or Python's True, False and None, else the text as it is."""
    name, between, text = pair.partition(_BETWEEN)
    if not between:
        raise typer.BadParameter("it takes a name and a value", param_hint="-p")
    if text in _WORDS:
        return name, _WORDS[text]
    try:
        return name, json.loads(text)
    except (ValueError, RecursionError):
        return name, text


async def _run(run: NotebookRun) -> int:
    from interpreter.client import AsyncClient

    content = await asyncio.to_thread(_read, run.file)
    # Before, not after hours of work.
    if run.out is not None and (not run.out.name or run.out.is_dir()):
        raise ConfigurationError(f"{str(run.out)!r} is a folder", hint="--out takes the name of a file")
    if run.out is not None and not run.out.parent.is_dir():
        raise ConfigurationError(f"{run.out} cannot be written: there is no folder {run.out.parent}")
    async with AsyncClient() as client:
        done = await _follow(_events(client, run, content), run)
    executed: Any = done.pop("notebook", None)
    if not isinstance(executed, dict) or not isinstance(done.get("status"), str):
        raise ServiceError("the notebook has no end")
    if run.out is not None:
        await _write(run.out, cast("Any", executed))
    if run.json_output:
        print_json(done if run.out is not None else {**done, "notebook": cast("Any", executed)})
    else:
        _tell(done, run)
    return {"ok": 0, "error": EXIT_CODE_RAISED, "timeout": EXIT_TIMEOUT}.get(done["status"], EXIT_FAILED)


def _events(client: "AsyncClient", run: NotebookRun, content: dict[str, Any]) -> "AsyncGenerator[Event]":
    if run.session_id is None:
        return client.stream_notebook(
            content,
            template=run.template,
            parameters=run.parameters,
            timeout=run.timeout,
            allow_errors=run.allow_errors,
        )
    if run.template is not None:
        raise ConfigurationError("--template is for a session of its own, not for --session")
    return client.session(run.session_id).stream_notebook(
        content, parameters=run.parameters, timeout=run.timeout, allow_errors=run.allow_errors
    )


async def _follow(events: "AsyncGenerator[Event]", run: NotebookRun) -> "Event":
    """Show how far it is; returns the last event without its type."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    last: Event = {}
    with Progress(*columns, console=err, disable=run.json_output or not err.is_terminal) as bar:
        task = bar.add_task(escape(run.file.name), total=None)
        async with contextlib.aclosing(events):
            async for event in events:
                _advance(bar, task, event)
                last = event
    return {key: value for key, value in last.items() if key != "type"}


def _advance(bar: Progress, task: TaskID, event: "Event") -> None:
    if event["type"] == "started" and isinstance(event.get("cells"), int):
        bar.update(task, total=event["cells"])
    elif event["type"] == "cell_done":
        bar.advance(task)


def _tell(done: "Event", run: NotebookRun) -> None:
    match done.get("error"):
        case {"ename": str(ename), "evalue": str(evalue), "traceback": [*lines]}:
            error = Error(ename=ename, evalue=evalue, traceback=[str(line) for line in lines])
            Display(Path(), json_lines=False).show(error)
        case {"code": str(code), "message": str(message)}:
            err.print(f"[bold red]error[/] ({escape(code)}): {escape(message)}")
        case _:
            pass
    if done.get("truncated"):
        err.print("[yellow]There is more output than the service keeps; the rest was left out.[/]")
    name = escape(str(run.out or run.file))
    if done["status"] == "ok":
        err.print(f"[green]✓[/] {name} in {done.get('duration_seconds', 0):.1f} s")
    else:
        err.print(f"[red]✗[/] {name} ended in cell {done.get('failed_cell')}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is not a Jupyter notebook")
    return content  # pyright: ignore[reportUnknownVariableType]


async def _write(path: Path, executed: Any) -> None:
    # Whole or not at all: it may well be the notebook that was run.
    text = await asyncio.to_thread(json.dumps, executed, indent=1, ensure_ascii=False)

    async def content() -> "AsyncGenerator[bytes]":
        yield f"{text}\n".encode()

    try:
        await save(content(), path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
