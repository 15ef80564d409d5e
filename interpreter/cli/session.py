"""``interpreter session``: sessions of a service that runs, at INTERPRETER_URL."""

import contextlib
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from pydantic import BaseModel
from rich.markup import escape
from rich.table import Column, Table

from interpreter.cli.cells import ExecRequest, run_cells
from interpreter.cli.source import read_source
from interpreter.cli.terminal import (
    EXIT_TIMEOUT,
    err,
    out,
    print_json,
    print_table,
    run_command,
    step,
)
from interpreter.cli.transfer import local_file, plain, transfer_bar
from interpreter.errors import ConfigurationError, InterpreterError, ServiceError

if TYPE_CHECKING:
    # Imported where it is used: it takes other commands time that they need not spend.
    from interpreter.client import AsyncClient, Event, SessionInfo

app = typer.Typer(name="session", help="Sessions of the service at INTERPRETER_URL.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The session.")]
_STANDARD_OUTPUT: Final = Path("-")


@app.command()
def create(
    template: Annotated[str | None, typer.Option("--template", "-t", help="Template to restore.")] = None,
    name: Annotated[str | None, typer.Option(help="Shown in lists; need not be unique.")] = None,
    timeout: Annotated[int | None, typer.Option(min=1, help="Seconds that it lives.")] = None,
    timeout_mode: Annotated[
        Literal["total", "idle"] | None, typer.Option(help="Whether they count from its start or its last use.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Variable; repeatable.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Start a session and print its id."""
    variables = dict(_variable(one) for one in env or [])

    async def main(client: "AsyncClient") -> None:
        with step("starting a session", quiet=json_output):
            session = await client.create_session(
                template, name=name, timeout_seconds=timeout, timeout_mode=timeout_mode, env=variables
            )
        if json_output:
            _print_model(await session.info())
        else:
            out.print(session.id)

    _run(main, json_output)


@app.command("list")
def list_sessions(
    state: Annotated[str | None, typer.Option(help="Only those in this state, such as running.")] = None,
    json_output: JsonOption = False,
) -> None:
    """List sessions, newest first."""

    async def main(client: "AsyncClient") -> None:
        sessions = [info async for info in client.list_sessions(state=state)]
        if json_output:
            print_json({"sessions": [info.model_dump(mode="json") for info in sessions]})
            return
        table = Table(Column("id", no_wrap=True), "name", "template", "state", "created", "expires", box=None)
        for info in sessions:
            texts = (info.id, info.name or "", info.template, _state(info), _time(info.created_at))
            table.add_row(*(escape(plain(text)) for text in texts), _time(info.expires_at))
        print_table(table)

    _run(main, json_output)


@app.command()
def show(session_id: IdArgument, json_output: JsonOption = False) -> None:
    """Show a session."""

    async def main(client: "AsyncClient") -> None:
        info = await client.session(session_id).info()
        if json_output:
            _print_model(info)
            return
        _print_rows(
            ("id", info.id),
            ("name", info.name or ""),
            ("template", f"{info.template}, {info.cpus} vCPU, {info.memory_mb} MB"),
            ("state", _state(info)),
            ("created", _time(info.created_at)),
            ("timeout", f"{info.timeout_seconds} s ({info.timeout_mode})"),
            ("expires", _time(info.expires_at)),
            ("stopped", _time(info.stopped_at)),
            ("network", info.network_mode),
            ("variables", ", ".join(info.env)),
            ("contexts", ", ".join(info.contexts)),
            ("message", info.message or ""),
        )

    _run(main, json_output)


@app.command()
def stop(
    session_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The sessions.")],
    json_output: JsonOption = False,
) -> None:
    """Stop sessions. All are tried, also when one cannot be stopped."""

    async def main(client: "AsyncClient") -> None:
        failure: InterpreterError | None = None
        for session_id in session_ids:
            try:
                info = await client.session(session_id).stop()
            except InterpreterError as error:
                failure = failure or error
                continue
            if json_output:
                _print_model(info)
            else:
                err.print(f"[green]✓[/] {escape(session_id)} is {escape(info.state)}")
        if failure is not None:
            raise failure

    _run(main, json_output)


@app.command("exec")
def execute(
    session_id: IdArgument,
    file: Annotated[Path | None, typer.Argument(help="FILE.py or FILE.ipynb to run.")] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of FILE.py, in its sys.argv; put -- before such as begin with -."),
    ] = None,
    code: Annotated[str | None, typer.Option("--code", "-c", help="Code to run, in place of a file.")] = None,
    context: Annotated[str, typer.Option(help="Which kernel runs it.")] = "main",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that the code may take in all.")] = None,
    images: Annotated[Path, typer.Option("--out", help="Folder for images that the code displays.")] = Path(),
    json_output: JsonOption = False,
) -> None:
    """Run code in a session and show its outputs as they come.

    A Python file is put into the session's home folder, in the place of one of that name, and runs there as it would
    with `python FILE.py`; its variables stay. Exits with 0 when the code ended well, 1 when it raised, what it gave to
    sys.exit, 124 when it ran out of time, 3 when the service failed.
    """

    async def main(client: "AsyncClient") -> int:
        request = ExecRequest(context, timeout, images, json_output)
        source = read_source(code, file, arguments or [])
        return await run_cells(client.session(session_id), source, request)

    raise typer.Exit(_run(main, json_output))


@app.command()
def sh(
    session_id: IdArgument,
    command: Annotated[str, typer.Argument(help="Run by bash in the session.")],
    cwd: Annotated[str, typer.Option(help="Folder to run it in.")] = "",
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that it may take.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Run a shell command in a session and exit with its status; 128 and the signal when one ended it."""

    async def main(client: "AsyncClient") -> int:
        events = client.session(session_id).stream_command(command, cwd=cwd, timeout=timeout)
        async with contextlib.aclosing(events):
            async for event in events:
                _show_command_event(event, json_output)
                if event["type"] == "done":
                    return _command_status(event, timeout)
        raise ServiceError("the command has no end")

    raise typer.Exit(_run(main, json_output))


@app.command()
def upload(
    session_id: IdArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files of this machine.")],
    to: Annotated[str, typer.Option(help="The session's folder to put them into.")] = ".",
    json_output: JsonOption = False,
) -> None:
    """Put files into a session, under their own names."""

    async def main(client: "AsyncClient") -> None:
        for path in files:
            if not path.is_file():
                raise ConfigurationError(f"{path} is not a file that can be uploaded")
        for path in files:
            target = path.name if to == "." else f"{to.rstrip('/')}/{path.name}"
            with local_file(path), transfer_bar(path.name, quiet=json_output) as progress:
                size = await client.session(session_id).upload(path, target, progress=progress)
            if json_output:
                print_json({"path": target, "size": size})

    _run(main, json_output)


@app.command()
def download(
    session_id: IdArgument,
    path: Annotated[str, typer.Argument(help="The session's file.")],
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Where to: a file, a folder, or - for standard output. Its own name here else."),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Get a file out of a session, whole or not at all."""
    if out_file == _STANDARD_OUTPUT and json_output:
        raise typer.BadParameter("standard output cannot take both the file and --json")

    async def main(client: "AsyncClient") -> None:
        name = path.rstrip("/").rsplit("/", 1)[-1]
        session = client.session(session_id)
        with local_file(out_file or Path(name)), transfer_bar(name, quiet=json_output) as progress:
            if out_file == _STANDARD_OUTPUT:
                await session.download(path, sys.stdout.fileno(), progress=progress)
                return
            target = out_file or Path(name)
            target = target / name if target.is_dir() else target
            await session.download(path, target, progress=progress)
            size = target.stat().st_size
        if json_output:
            print_json({"path": plain(str(target)), "size": size})

    _run(main, json_output)


@app.command()
def ls(
    session_id: IdArgument,
    path: Annotated[str, typer.Argument(help="The session's folder.")] = ".",
    json_output: JsonOption = False,
) -> None:
    """List a folder of a session."""

    async def main(client: "AsyncClient") -> None:
        entries = [entry async for entry in client.session(session_id).list_files(path)]
        if json_output:
            print_json({"entries": [entry.model_dump(mode="json") for entry in entries]})
            return
        table = Table(box=None, show_header=False)
        for column in ("left", "right", "left", "left"):
            table.add_column(justify=column)
        for entry in entries:
            name = f"{entry.name}{'/' if entry.type == 'folder' else f' -> {entry.target}' if entry.target else ''}"
            table.add_row(entry.mode, str(entry.size), _time(entry.modified_at), escape(plain(name)))
        print_table(table)

    _run(main, json_output)


@app.command()
def usage(session_id: IdArgument, json_output: JsonOption = False) -> None:
    """Show what a session has used so far."""

    async def main(client: "AsyncClient") -> None:
        used = await client.session(session_id).usage()
        if json_output:
            _print_model(used)
            return
        _print_rows(
            ("time", f"{used.seconds} s"),
            ("CPU", f"{used.cpu_seconds:.3f} s"),
            ("memory", f"{used.memory_gb_seconds:.3f} GB s, at most {used.memory_peak_bytes / 1e6:.0f} MB"),
            ("cost", f"{used.cost:.6f}"),
        )

    _run(main, json_output)


def _show_command_event(event: "Event", json_output: bool) -> None:
    if json_output:
        print_json(event)
    elif event["type"] == "stream":
        stream = sys.stderr if event.get("name") == "stderr" else sys.stdout
        stream.write(str(event.get("text", "")))
        stream.flush()
    elif event["type"] == "truncated":
        err.print("[yellow]There is more output than the service keeps; the rest was left out.[/]")


def _command_status(done: "Event", timeout: float | None) -> int:
    from interpreter.client import error_from_result

    status, code = done.get("status"), done.get("exit_code")
    if status == "timeout":
        err.print(f"[bold red]error[/]: the command did not end within {timeout or 0:g} s")
        return EXIT_TIMEOUT
    if status not in {"ok", "error"} or not isinstance(code, int):
        raise error_from_result(done.get("error"), f"the command ended as {status}")
    return code if code >= 0 else 128 - code


def _run(main: "Callable[[AsyncClient], Coroutine[Any, Any, Any]]", json_output: bool) -> Any:
    async def with_client() -> Any:
        async with _client() as client:
            return await main(client)

    return run_command(with_client(), json_output=json_output)


@asynccontextmanager
async def _client() -> "AsyncGenerator[AsyncClient]":
    from interpreter.client import AsyncClient

    async with AsyncClient() as client:
        yield client


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--env")
    return name, value


def _print_model(model: BaseModel) -> None:
    print_json(model.model_dump(mode="json"))


def _print_rows(*rows: tuple[str, str]) -> None:
    table = Table(show_header=False, box=None)
    for name, value in rows:
        if value:
            table.add_row(name, escape(plain(value)))
    print_table(table)


def _state(info: "SessionInfo") -> str:
    return f"{info.state} ({info.reason})" if info.reason else info.state


def _time(when: datetime | None) -> str:
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S") if when else ""
