"""The commands and their options."""

from pathlib import Path
from typing import Annotated

import typer

from interpreter.cli import doctor as doctor_command
from interpreter.cli import kernelspec as kernelspec_command
from interpreter.cli import notebook as notebook_command
from interpreter.cli import run as run_command_module
from interpreter.cli import session as session_command
from interpreter.cli import template as template_command
from interpreter.cli.source import read_source
from interpreter.cli.terminal import prepare_streams, run_command
from interpreter.engine.engine import DEFAULT_TEMPLATE
from interpreter.settings import load_settings

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

app = typer.Typer(
    name="interpreter",
    help="Run Python code in microVMs that are restored from snapshots in a fraction of a second.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
template = typer.Typer(name="template", help="Build, list, show and remove templates.", no_args_is_help=True)
app.add_typer(template)
session_command.app.command("notebook", cls=notebook_command.PairsCommand)(notebook_command.notebook)
app.add_typer(session_command.app)
app.add_typer(kernelspec_command.app)


@app.command()
def run(
    file: Annotated[Path | None, typer.Argument(help="FILE.py or FILE.ipynb to run.")] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of FILE.py, in its sys.argv; put -- before such as begin with -."),
    ] = None,
    code: Annotated[str | None, typer.Option("--code", "-c", help="Code to run, in place of a file.")] = None,
    template_name: Annotated[str, typer.Option("--template", "-t", help="Template to restore.")] = DEFAULT_TEMPLATE,
    upload: Annotated[list[Path] | None, typer.Option(help="File to put into the session first; repeatable.")] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that the code may take in all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for images that the code displays.")] = Path(),
    json_output: JsonOption = False,
) -> None:
    """Restore a session, run code in it, and show its outputs as they come.

    A Python file is put into the session's home folder and runs there as it would with `python FILE.py`. Exits with 0
    when the code ended well, 1 when it raised, what it gave to sys.exit, 124 when it ran out of time, 3 when the
    service failed.
    """

    async def main() -> int:
        request = run_command_module.RunRequest(
            source=read_source(code, file, arguments or []),
            template=template_name,
            uploads=upload or [],
            timeout=timeout,
            out=out,
            json_lines=json_output,
        )
        return await run_command_module.run(load_settings(), request)

    raise typer.Exit(run_command(main(), json_output=json_output))


@app.command()
def doctor(
    json_output: JsonOption = False,
    probe: Annotated[bool, typer.Option("--probe", help="Probe the accelerator again.")] = False,
) -> None:
    """Tell what this host has, what is missing, and what of the jail is in force."""

    async def main() -> int:
        return await doctor_command.doctor(load_settings(), json_output=json_output, probe=probe)

    raise typer.Exit(run_command(main(), json_output=json_output))


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (INTERPRETER_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (INTERPRETER_PORT).", min=0, max=65535)] = None,
) -> None:
    """Serve sessions over REST until Ctrl-C or SIGTERM; then end them all."""
    # Imported here: the web framework takes other commands half a second that they need not spend.
    from interpreter.cli import serve as serve_command

    async def main() -> None:
        settings = load_settings()
        given = {"host": host, "port": port}
        changed = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
        await serve_command.serve(changed)

    run_command(main(), json_output=False)


@app.command()
def mcp() -> None:
    """Serve tools for language models (MCP) over standard input and output.

    Uses the service at INTERPRETER_URL when that is set, with INTERPRETER_API_KEY; else runs one of its own.
    """
    from interpreter.cli import mcp as mcp_command

    async def main() -> None:
        await mcp_command.serve(load_settings())

    run_command(main(), json_output=False)


@template.command("build")
def template_build(
    name: Annotated[str, typer.Argument(help="Template to build.")],
    force: Annotated[bool, typer.Option("--force", help="Build also when it is built already.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Build a template: its root file system, then a snapshot of its warm kernel."""

    async def main() -> None:
        await template_command.build(load_settings(), name, force=force, json_output=json_output)

    run_command(main(), json_output=json_output)


@template.command("list")
def template_list(json_output: JsonOption = False) -> None:
    """List the templates that are defined or built."""

    async def main() -> None:
        template_command.list_all(load_settings(), json_output=json_output)

    run_command(main(), json_output=json_output)


@template.command("show")
def template_show(
    name: Annotated[str, typer.Argument(help="Template's name or content hash.")], json_output: JsonOption = False
) -> None:
    """Show what is in a built template."""

    async def main() -> None:
        template_command.show(load_settings(), name, json_output=json_output)

    run_command(main(), json_output=json_output)


@template.command("rm")
def template_rm(
    name: Annotated[str, typer.Argument(help="Template's name or content hash.")], json_output: JsonOption = False
) -> None:
    """Remove a built template. Sessions that run on it go on."""

    async def main() -> None:
        await template_command.remove(load_settings(), name, json_output=json_output)

    run_command(main(), json_output=json_output)


def main() -> None:
    """Entry point of the command."""
    prepare_streams()
    app()
