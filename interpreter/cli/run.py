"""``interpreter run``: code in a fresh session, outputs as they come."""

import asyncio
import contextlib
import os
import stat
import sys
import termios
from collections.abc import Generator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.markup import escape

from interpreter.cli.cells import CellsShown
from interpreter.cli.source import Source
from interpreter.cli.terminal import err, step
from interpreter.cli.transfer import local_file, transfer_bar
from interpreter.engine.engine import Engine
from interpreter.engine.session import Session
from interpreter.errors import ConfigurationError, ExecutionTimeout
from interpreter.settings import Settings

_END_OF_INPUT: Final = "\x04"
"""The answer of which a kernel makes EOFError."""
_PIECE: Final = 4096
_unread = bytearray()
"""Of standard input, what was read and not asked for yet."""


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
    loop = asyncio.get_running_loop()
    deadline = None if request.timeout is None else loop.time() + request.timeout
    for cell in request.source.cells:
        left = None if deadline is None else deadline - loop.time()
        if left is not None and left <= 0:
            raise ExecutionTimeout(f"the code did not end within {request.timeout:g} s")
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


async def ask(prompt: str, password: bool) -> str:
    """A line of standard input, for code that calls ``input()``; without one more the code gets EOFError."""
    is_terminal = sys.stdin.isatty()
    # Where Python writes it; on a terminal, apart from what the code prints.
    stream = sys.stderr if is_terminal or password else sys.stdout
    stream.write(prompt)
    stream.flush()
    with _without_echo(sys.stdin.fileno()) if is_terminal and password else contextlib.nullcontext():
        line = await _read_line(sys.stdin.fileno())
    return line.decode(sys.stdin.encoding, "replace").rstrip("\r\n") if line else _END_OF_INPUT


async def _read_line(descriptor: int) -> bytes:
    # Not input() in a thread: nothing could end that thread when the user presses Ctrl-C.
    while b"\n" not in _unread and (piece := await _read(descriptor)):
        _unread.extend(piece)
    line, end, rest = bytes(_unread).partition(b"\n")
    _unread[:] = rest
    return line + end


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:
        # A file, which never waits.
        return os.read(descriptor, _PIECE)
    try:
        await readable.wait()
        return os.read(descriptor, _PIECE)
    finally:
        loop.remove_reader(descriptor)


@contextlib.contextmanager
def _without_echo(descriptor: int) -> Generator[None]:
    before = termios.tcgetattr(descriptor)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
