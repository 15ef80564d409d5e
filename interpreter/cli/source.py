"""Code to run, from an argument, a Python file or a notebook."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from interpreter.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Cell:
    """Code that runs as one execution. ``number`` counts a notebook's code cells from 1."""

    code: str
    number: int = 1


def read_cells(code: str | None, file: Path | None) -> list[Cell]:
    """The cells of ``-c CODE``, FILE.py or FILE.ipynb. Raises ConfigurationError."""
    if (code is None) == (file is None):
        raise ConfigurationError("give either -c CODE or a file", hint="See `interpreter run --help`")
    if code is not None:
        return [Cell(code)]
    path = cast("Path", file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not UTF-8 text") from None
    if path.suffix == ".ipynb":
        return _notebook_cells(path, text)
    return [Cell(text)]


def _notebook_cells(path: Path, text: str) -> list[Cell]:
    # nbformat 4: "cells" with "cell_type" and "source", which is text or a list of lines.
    try:
        notebook: Any = json.loads(text)
        sources = [
            source if isinstance(source, str) else "".join(source)
            for cell in notebook["cells"]
            if cell["cell_type"] == "code" and (source := cell["source"])
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigurationError(f"{path} is not a Jupyter notebook of format 4") from None
    return [Cell(source, number) for number, source in enumerate(sources, 1)]
