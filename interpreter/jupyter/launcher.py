"""``python -m interpreter.jupyter``: a kernel's process, for front ends that start kernels themselves.

It reads the connection file that the front end has written, listens where that says, signs as that says, and behaves
as the kernel would: SIGINT interrupts, SIGTERM ends it, it ends when the kernel does, and when the front end does.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from pydantic import Field, ValidationError

from interpreter.engine.engine import DEFAULT_TEMPLATE
from interpreter.errors import ConfigurationError, InterpreterError
from interpreter.jupyter.endpoints import SIGNATURE_SCHEME, Endpoints
from interpreter.jupyter.environment import guest_environment
from interpreter.jupyter.guests import Wanted
from interpreter.jupyter.relayed import MACHINE_GONE, RelayedKernel
from interpreter.jupyter.shared import be_quiet, guests_of

EXIT_FAILED: Final = 3
"""The kernel could not be started; 2 is argparse's, for wrong arguments."""
_EXIT_SIGNAL: Final = 128


class ConnectionFile(Endpoints):
    """What a client writes for the kernel that it starts."""

    key: str = Field(default="", pattern=r"^[\x20-\x7e]*$", repr=False)
    signature_scheme: str = Field(default=SIGNATURE_SCHEME, pattern=f"^{SIGNATURE_SCHEME}$")


def read_connection_file(path: Path) -> ConnectionFile:
    """Read a connection file. Raises ConfigurationError that says what is wrong with it."""
    try:
        return ConnectionFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"the connection file {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'all of it'}: {fault['msg']}" for fault in error.errors()
        )
        raise ConfigurationError(f"the connection file {path} cannot be used: {faults}") from None


async def run(file: ConnectionFile, template: str, url: str, environment: dict[str, str]) -> int:
    """Be a kernel until it ends, or is told to; returns the exit status. Raises InterpreterError."""
    stop: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(status: int) -> None:
        if not stop.done():
            stop.set_result(status)

    async with AsyncExitStack() as stack:
        guests = guests_of(url)
        stack.push_async_callback(guests.close)
        kernel = RelayedKernel(guests, Wanted(template, file.key.encode("ascii"), environment), file)
        stack.push_async_callback(kernel.close)
        stack.enter_context(_signals(kernel, end))
        stack.enter_context(_parent_watched(lambda: end(_EXIT_SIGNAL + signal.SIGHUP)))
        # Before the machine is there: a client that is quicker than it has somewhere to wait.
        await kernel.listen()
        living = asyncio.create_task(_live(kernel))
        await asyncio.wait({living, stop}, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            return living.result()
        living.cancel()
        await asyncio.wait({living})
        return stop.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser("python -m interpreter.jupyter", description="A kernel in a microVM, for Jupyter.")
    parser.add_argument("-f", "--connection-file", type=Path, required=True, help="what the front end has written")
    parser.add_argument("--template", "-t", default=DEFAULT_TEMPLATE, help="template that the session is restored from")
    parser.add_argument("--url", default=os.environ.get("INTERPRETER_URL", ""), help="service that runs the session")
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="variable to pass on; repeatable")
    given = parser.parse_args(arguments)
    be_quiet()
    environment = guest_environment(os.environ, given.env)
    try:
        status = asyncio.run(run(read_connection_file(given.connection_file), given.template, given.url, environment))
    except InterpreterError as error:
        sys.stderr.write(f"the kernel cannot be started: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return _EXIT_SIGNAL + signal.SIGINT
    return status


async def _live(kernel: RelayedKernel) -> int:
    await kernel.start()
    status = await kernel.wait()
    if status == MACHINE_GONE:
        sys.stderr.write("the kernel's machine is gone, or its kernel was killed\n")
    return status if status >= 0 else _EXIT_SIGNAL - status


@contextlib.contextmanager
def _signals(kernel: RelayedKernel, end: Callable[[int], None]) -> Generator[None]:
    loop = asyncio.get_running_loop()
    interrupts: set[asyncio.Task[None]] = set()

    def interrupt() -> None:
        task = loop.create_task(kernel.interrupt())
        interrupts.add(task)
        task.add_done_callback(interrupts.discard)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, _EXIT_SIGNAL + number)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _parent_watched(gone: Callable[[], None]) -> Generator[None]:
    """Call ``gone`` when the client that started this process has ended; process 1 and its like never do."""
    parent = _parent()
    if parent <= 1:
        yield
        return
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        gone()
        yield
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(descriptor)
        gone()

    loop.add_reader(descriptor, ended)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _parent() -> int:
    # Jupyter's clients tell theirs: they may have been gone before this process could ask for it.
    told = os.environ.get("JPY_PARENT_PID", "")
    return int(told) if told.isascii() and told.isdecimal() else os.getppid()
