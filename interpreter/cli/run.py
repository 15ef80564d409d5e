"""``interpreter run``: code in a fresh session, outputs as they come."""

import stat
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from interpreter.cli.cells import CellsShown, cells_in_time
from interpreter.cli.source import Source
from interpreter.cli.terminal import ask, err, step
from interpreter.cli.transfer import local_file, transfer_bar
from interpreter.engine.engine import Engine
from interpreter.engine.session import Session
from interpreter.errors import ConfigurationError
from interpreter.settings import Settings


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What to run and how. ``timeout`` is in seconds, for all cells together."""

    source: Source
    template: str
    uploads: list[Path]
    timeout: float | None
    out: Path
    json_lines: bool


async def run(settings: Settings, request: RunRequest) -> int:
    """Run the cells in one new session and return the exit code. Raises InterpreterError."""
    for path in request.uploads:
        if not path.is_file():
            raise ConfigurationError(f"{path} is not a file that can be uploaded")
    async with AsyncExitStack() as stack:
        with step(f"restoring a session of {request.template}", quiet=request.json_lines):
            engine = await stack.enter_async_context(Engine(settings, progress=_tell_progress))
            session = await stack.enter_async_context(engine.session(template=request.template))
        for path in request.uploads:
            await _upload(session, path, quiet=request.json_lines)
        for name, content in request.source.files.items():
            await session.files.upload(content, name)
        return await _run_cells(session, request)


async def _upload(session: Session, path: Path, *, quiet: bool) -> None:
    # Imported here: the client's libraries take other runs time that they need not spend.
    from interpreter.client.pieces import counted, read_file

    with local_file(path), transfer_bar(path.name, quiet=quiet) as progress:
        about = path.stat()
        pieces = counted(read_file(path, about.st_size), about.st_size, progress)
        mode = stat.S_IMODE(about.st_mode)
        await session.files.upload_stream(pieces, path.name, size=about.st_size, mode=mode)


def _tell_progress(text: str) -> None:
    # Only heard when the snapshot must be made again, which takes long enough that the user should know why.
    err.print(f"[yellow]template:[/] {escape(text)}")


async def _run_cells(session: Session, request: RunRequest) -> int:
    shown = CellsShown(request.out, json_lines=request.json_lines)
    for cell, left in cells_in_time(request.source, request.timeout):
        execution = session.execute(
            cell.code,
            store_history=cell.store_history,
            timeout=left,
            on_input=None if request.json_lines else ask,
        )
        async for output in execution:
            shown.show(cell, output)
        result = await execution.result()
        if (code := shown.ended(cell, result.status, result.execution_count)) is not None:
            return code
    return 0
