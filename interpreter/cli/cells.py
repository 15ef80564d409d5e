"""What cells of code show on a terminal, and the exit code that they lead to: as `python` has it."""

import sys
from pathlib import Path

from interpreter.cli.display import Display
from interpreter.cli.source import Cell
from interpreter.cli.terminal import EXIT_CODE_RAISED, EXIT_INTERRUPTED, print_json
from interpreter.kernel.outputs import Error, Output, Stream, system_exit


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
