"""Code to run: from an argument, a Python file, or a notebook."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from interpreter.errors import ConfigurationError, ServiceError
from interpreter.kernel.outputs import is_exit

_HOME: Final = "/home/user"


@dataclass(frozen=True, slots=True)
class Cell:
    """Code that runs as one execution. ``number`` counts a notebook's cells of code from 1."""

    code: str
    number: int = 1
    may_raise: bool = False
    """Whether the cells behind it are run when it raises."""
    ends: bool = False
    """Whether nothing is run after it."""
    store_history: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """Cells, and by their names the files that they need in the session's home folder."""

    cells: list[Cell]
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])


def read_source(code: str | None, file: Path | None, arguments: Sequence[str] = ()) -> Source:
    """What is to be run of ``-c CODE``, FILE.ipynb, FILE.ipy, or a Python file with its arguments.

    Raises ConfigurationError.
    """
    if (code is None) == (file is None):
        raise ConfigurationError("give either -c CODE or a file", hint="See `interpreter run --help`")
    if code is not None:
        return Source([Cell(code, ends=is_exit(code))])
    path = cast("Path", file)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    kind = path.suffix.lower()
    if kind not in {".ipynb", ".ipy"}:
        return _script(path, content, arguments)
    if arguments:
        raise ConfigurationError("arguments are for a Python file", hint="A notebook takes none")
    return Source(_notebook_cells(path, content) if kind == ".ipynb" else [Cell(_text(path, content))])


def _script(path: Path, content: bytes, arguments: Sequence[str]) -> Source:
    # In the session it lies where it would lie with the files that are uploaded beside it.
    name = path.name or "script.py"
    program = Path(__file__).with_name("script.py").read_text(encoding="utf-8")
    call = f"['run_script'](get_ipython(), {f'{_HOME}/{name}'!r}, {list(arguments)!r})"
    # In names of its own, not among the variables that stay.
    code = f"(lambda names: (exec({program!r}, names), names){'[1]'}{call})({{'__name__': 'interpreter'}})"
    return Source([Cell(code, store_history=False)], {name: content})


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None


def _notebook_cells(path: Path, content: bytes) -> list[Cell]:
    # Imported here: it takes other runs time that they need not spend.
    from interpreter.notebooks.cells import is_run, may_raise, notebook_to_run
    from interpreter.notebooks.format import parse_notebook

    try:
        notebook = notebook_to_run(parse_notebook(content, str(path)))
    except ServiceError as error:
        raise ConfigurationError(f"{path} cannot be run: {error.message}", hint=error.hint) from None
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [
        Cell(cell["source"], number, may_raise(cell), is_exit(cell["source"]))
        for number, cell in enumerate(code, 1)
        if is_run(cell)
    ]
