"""What every command shares: how it runs, how it tells an error, and where it prints."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import sys
import termios
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from interpreter.errors import ExecutionTimeout, InterpreterError

EXIT_CODE_RAISED: Final = 1
EXIT_FAILED: Final = 3
"""Something of the service's own went wrong; 2 is typer's, for wrong arguments."""
EXIT_TIMEOUT: Final = 124
EXIT_INTERRUPTED: Final = 130

_WIDE: Final = 10_000

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_END_OF_INPUT: Final = "\x04"
"""The answer of which a kernel makes EOFError."""
_PIECE: Final = 4096
_unread = bytearray()
"""Of standard input, what was read and not asked for yet."""

T = TypeVar("T")


def run_command(main: Coroutine[Any, Any, T], *, json_output: bool) -> T:
    """Run a command to its end. An error of ours becomes one message and an exit code, never a traceback.

    SIGTERM ends it as Ctrl-C does: what it opened is closed first.
    """
    _configure_logging()
    try:
        with asyncio.Runner() as runner:
            return runner.run(_until_terminated(main))
    except ExecutionTimeout as error:
        _tell(error, json_output=json_output)
        raise typer.Exit(EXIT_TIMEOUT) from None
    except InterpreterError as error:
        _tell(error, json_output=json_output)
        raise typer.Exit(EXIT_FAILED) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        err.print("[yellow]Interrupted.[/] Nothing is left running.")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def prepare_streams() -> None:
    """Have standard output and error take any text: what their encoding cannot hold is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(value: object) -> None:
    """One line of JSON on standard output."""
    # The escapes of other encodings than this are none of JSON's.
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_utf8) + "\n")
    sys.stdout.flush()


def print_table(table: Table) -> None:
    """A table on standard output. What reads a pipe has no width to which lines could be cut."""
    wide = out if out.is_terminal else Console(file=sys.stdout, highlight=False, width=_WIDE)
    wide.print(table)


@contextlib.contextmanager
def step(text: str, *, quiet: bool = False) -> Generator[None]:
    """Show on standard error that something is under way, with a spinner on a terminal."""
    if quiet or not err.is_terminal:
        yield
        return
    with err.status(escape(text)):
        yield


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


def _tell(error: InterpreterError, *, json_output: bool) -> None:
    if json_output:
        print_json({"error": error.as_json()})
        return
    err.print(f"[bold red]error[/] ({error.code}): {escape(error.message)}")
    if error.hint:
        err.print(f"  {escape(error.hint)}")


async def _until_terminated(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _configure_logging() -> None:
    # The library's own chatter (qemu.qmp logs every lost connection) is for a service's log, not for a terminal.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


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
