"""``interpreter kernelspec``: what Jupyter's front ends on this machine list as kernels."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from interpreter.cli.terminal import err, print_json, print_table, run_command
from interpreter.errors import ConfigurationError, TemplateNotFound
from interpreter.settings import load_settings
from interpreter.templates.store import TemplateStore

if TYPE_CHECKING:
    # Imported where it is used: it takes other commands time that they need not spend.
    from interpreter.jupyter.kernelspecs import Kernelspec

app = typer.Typer(
    name="kernelspec",
    help="Kernels for JupyterLab, VS Code, nbclient, papermill on this machine.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@app.command()
def install(
    template: Annotated[
        list[str] | None,
        typer.Option("--template", "-t", help="Template; repeatable. All that are built when not given."),
    ] = None,
    url: Annotated[str, typer.Option(help="Service that runs the sessions; else Jupyter's own process does.")] = "",
    user: Annotated[bool, typer.Option("--user", help="For this user alone, which is the default.")] = False,
    sys_prefix: Annotated[bool, typer.Option("--sys-prefix", help="For this Python environment.")] = False,
    prefix: Annotated[Path | None, typer.Option(help="Below DIR/share/jupyter/kernels.")] = None,
    name: Annotated[str, typer.Option(help="The kernelspec's name, with one template: interpreter-TEMPLATE.")] = "",
    display_name: Annotated[str, typer.Option(help="What front ends show, with one template.")] = "",
    json_output: JsonOption = False,
) -> None:
    """Write kernelspecs, so that Jupyter's front ends start their kernels in microVMs."""

    async def main() -> None:
        from interpreter.jupyter import kernelspecs

        if user + sys_prefix + (prefix is not None) > 1:
            raise ConfigurationError("--user, --sys-prefix and --prefix are different places", hint="Give one of them")
        templates = await _templates(template or [], url)
        if len(templates) > 1 and (name or display_name):
            raise ConfigurationError("one name cannot be that of several kernelspecs", hint="Give one --template")
        wanted = [
            kernelspecs.Kernelspec.of_template(one, url=url, name=name, display_name=display_name) for one in templates
        ]
        written = [kernelspecs.install(one, Path(sys.prefix) if sys_prefix else prefix) for one in wanted]
        if json_output:
            print_json({"kernelspecs": [one.as_json() for one in written]})
            return
        for one in written:
            err.print(f"[green]✓[/] {escape(one.name)} is installed in {escape(str(one.folder))}")

    run_command(main(), json_output=json_output)


@app.command("list")
def list_installed(json_output: JsonOption = False) -> None:
    """List the kernelspecs of microVMs that Jupyter finds."""

    async def main() -> None:
        from interpreter.jupyter import kernelspecs

        found = kernelspecs.installed()
        if json_output:
            print_json({"kernelspecs": [one.as_json() for one in found]})
            return
        table = Table(Column("name", no_wrap=True), "display name", "template", "runs at", "folder", box=None)
        for one in found:
            table.add_row(*map(escape, _texts(one)))
        print_table(table)

    run_command(main(), json_output=json_output)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The kernelspec's name.")], json_output: JsonOption = False
) -> None:
    """Remove a kernelspec. Kernels that run go on."""

    async def main() -> None:
        from interpreter.jupyter import kernelspecs

        removed = kernelspecs.remove(name)
        if json_output:
            print_json({"removed": removed.as_json()})
        else:
            err.print(f"[green]✓[/] {escape(removed.name)} is removed")

    run_command(main(), json_output=json_output)


def _texts(one: "Kernelspec") -> tuple[str, ...]:
    return (one.name, one.display_name, one.template, one.url or "this machine", str(one.folder))


async def _templates(wanted: list[str], url: str) -> list[str]:
    """The templates to write kernelspecs for; what a kernelspec names must be there, as far as this can be known."""
    if not url:
        store = TemplateStore(load_settings().templates_home)
        for name in wanted:
            store.find(name)
        names = wanted or list(store.list())
    else:
        from interpreter.client import AsyncClient

        async with AsyncClient(url) as client:
            names = wanted or [info.name for info in await client.templates() if info.built]
    if not names:
        raise TemplateNotFound("no template is built", hint="Build one: interpreter template build python-data")
    return list(dict.fromkeys(names))
