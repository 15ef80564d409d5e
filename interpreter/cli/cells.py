"""What cells of code show on a terminal, and the exit code that they lead to: as `python` has it."""

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter, ValidationError

from interpreter.cli.display import Display
from interpreter.cli.source import Cell, Source
from interpreter.cli.terminal import EXIT_CODE_RAISED, EXIT_INTERRUPTED, ask, err, print_json
from interpreter.errors import ExecutionTimeout, ServiceError
from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.outputs import Error, Output, Stream, system_exit

if TYPE_CHECKING:
    # Imported where it is used: it takes other commands time that they need not spend.
    from interpreter.client import AsyncSession, Event

_OUTPUT: Final[TypeAdapter[Output]] = TypeAdapter(Output)


class CellsShown:
    """Shows the outputs of cells that run one after the other."""

    def __init__(self, folder: Path, *, json_lines: bool) -> None:
        self._display = Display(folder, json_lines=json_lines)
        self._json_lines = json_lines
        self._exit: int | None = None

    def show(self, cell: Cell, output: Output) -> None:
        """Show one output of a cell. Raises ConfigurationError when an image cannot be written."""
        left = system_exit(output.ename, output.evalue) if isinstance(output, Error) else None
        if cell.ends and isinstance(output, Stream) and not self._json_lines:
            # What becomes of the kernel, which is nothing to who leaves.
            return
        if left is None or self._json_lines:
            self._display.show(output)
        elif left.text is not None:
            sys.stderr.write(f"{left.text}\n")
            sys.stderr.flush()
        if left is not None:
            self._exit = left.status
        elif isinstance(output, Error) and output.ename == "KeyboardInterrupt":
            self._exit = EXIT_INTERRUPTED

    def ended(self, cell: Cell, status: str, execution_count: int | None) -> int | None:
        """The exit code when nothing is run after this cell; None when it goes on."""
        if self._json_lines:
            result = {"status": status, "execution_count": execution_count, "cell": cell.number}
            print_json({"type": "result", **result})
        left, self._exit = self._exit, None
        if status == "ok":
            return 0 if cell.ends else None
        if status == "error" and cell.may_raise:
            return None
        return EXIT_CODE_RAISED if left is None else left


def cells_in_time(source: Source, timeout: float | None) -> Iterator[tuple[Cell, float | None]]:
    """The cells, each with the seconds of ``timeout`` that are left for it. Raises ExecutionTimeout when none are."""
    time = asyncio.get_running_loop().time
    end = None if timeout is None else time() + timeout

    def each() -> Iterator[tuple[Cell, float | None]]:
        for cell in source.cells:
            left = None if end is None else end - time()
            if left is not None and left <= 0:
                raise ExecutionTimeout(f"the code did not end within {timeout:g} s")
            yield cell, left

    return each()


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """How code runs in a session of a service. ``timeout`` is in seconds, for all cells together."""

    context: str
    timeout: float | None
    images: Path
    json_lines: bool


async def run_cells(session: "AsyncSession", source: Source, request: ExecRequest) -> int:
    """Run cells one after the other and return the exit code. Raises InterpreterError."""
    shown = CellsShown(request.images, json_lines=request.json_lines)
    # Before the files go up: that counts, too.
    cells = cells_in_time(source, request.timeout)
    for name, content in source.files.items():
        await session.upload(content, name)
    for cell, left in cells:
        on_input = None if request.json_lines else ask
        events = session.stream(
            cell.code,
            context_id=request.context,
            timeout=left,
            store_history=cell.store_history,
            on_input=on_input,
        )
        async with contextlib.aclosing(events):
            async for event in events:
                if event["type"] in OUTPUT_TYPES:
                    shown.show(cell, _output(event))
                elif event["type"] == "truncated" and not request.json_lines:
                    err.print("[yellow]There is more output than the service keeps; the rest was left out.[/]")
                elif event["type"] == "done":
                    status, count = _ending(event)
                    if (code := shown.ended(cell, status, count)) is not None:
                        return code
    return 0


def _ending(done: "Event") -> tuple[str, int | None]:
    from interpreter.client import error_from_result

    status, count = done.get("status"), done.get("execution_count")
    if status not in {"ok", "error", "aborted"}:
        raise error_from_result(done.get("error"), f"the execution ended as {status}")
    return str(status), count if isinstance(count, int) else None


def _output(event: "Event") -> Output:
    try:
        return _OUTPUT.validate_python(event)
    except ValidationError:
        raise ServiceError("the service sent an output that cannot be understood") from None
