"""Notebooks as they come in and go out: JSON, versions 2 to 4, nbformat's schema. The one place that uses nbformat.

A notebook may come out of a session or from anybody who may call: nothing of it is taken for granted. All of this
takes time that grows with the notebook; callers run it in a thread.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, cast

from interpreter.errors import InvalidRequest, TooLarge
from interpreter.kernel.limits import check_json
from interpreter.notebooks.repair import new_id, repaired_cell, repaired_metadata

Notebook = dict[str, Any]
"""A notebook of format 4.5, valid by its schema, with plain dictionaries and lists in it."""

MAX_CELLS: Final = 10_000
MAX_SOURCE: Final = 8_000_000
"""Characters of one cell: what one execution may have."""
_MAX_VALUES: Final = 2_000_000
_MAJORS: Final = frozenset({2, 3, 4})
_MINOR: Final = 5
_LANGUAGES: Final = frozenset({"python", "ipython", "python3", "ipython3"})
_KERNELSPEC: Final = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
_PYTHON: Final = {"name": "python"}
_TOLD: Final = ("name", "version", "mimetype", "file_extension", "pygments_lexer", "nbconvert_exporter")


def parse_notebook(data: bytes, what: str = "the body") -> Any:
    """JSON in UTF-8. Raises InvalidRequest, TooLarge, which say ``what`` it is that cannot be parsed."""
    try:
        check_json(data, what, size=len(data), values=_MAX_VALUES)
    except TooLarge as error:
        raise TooLarge(error.message, hint="Clear the notebook's outputs before it is sent") from None
    try:
        text = data.decode("utf-8-sig")
        value: Any = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # Half a surrogate pair is no text: nothing after this could write it down.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise InvalidRequest(f"{what} is nested too deep") from None
    except UnicodeError:
        raise InvalidRequest(f"{what} holds text that is not Unicode") from None
    except ValueError as error:
        raise InvalidRequest(f"{what} is not JSON: {str(error)[:200]}") from None
    return value


def read_notebook(value: object) -> Notebook:
    """A notebook of format 2, 3 or 4 as one of 4.5, mended, without its outputs. Raises InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest("a notebook is a JSON object with nbformat and cells")
    given = cast("dict[str, Any]", value)
    major = given.get("nbformat")
    if type(major) is not int:
        raise InvalidRequest("this is not a notebook: it has no nbformat", hint="Send the content of an .ipynb file")
    if major not in _MAJORS:
        raise InvalidRequest(f"notebooks of format {str(major)[:20]} cannot be run", hint="Save it in format 4")
    taken: set[str] = set()
    notebook: Notebook = {
        "cells": [repaired_cell(cell, number, major, taken) for number, cell in enumerate(_cells_of(given, major))],
        "metadata": repaired_metadata(given.get("metadata"), major),
        "nbformat": 4,
        "nbformat_minor": _MINOR,
    }
    _validate(notebook)
    _check_content(notebook)
    return notebook


def new_cell(source: str, tags: list[str], taken: set[str]) -> dict[str, Any]:
    """A code cell whose id is none of ``taken``."""
    cell_id = new_id(taken)
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": cell_id,
        "metadata": {"tags": tags},
        "outputs": [],
        "source": source,
    }


def fill_metadata(notebook: Notebook, language_info: object) -> None:
    """Say what it ran on. ``language_info`` is the kernel's own, which need not be true."""
    metadata = notebook["metadata"]
    metadata.setdefault("kernelspec", dict(_KERNELSPEC))
    told = cast("dict[str, Any]", language_info) if isinstance(language_info, dict) else {}
    info: dict[str, Any] = {key: text for key in _TOLD if isinstance(text := told.get(key), str) and len(text) <= 100}
    match told.get("codemirror_mode"):
        case {"name": str(name), "version": int(version)} if len(name) <= 100:
            info["codemirror_mode"] = {"name": name, "version": version}
        case _:
            pass
    if "name" in info:
        metadata["language_info"] = info
    else:
        metadata.setdefault("language_info", dict(_PYTHON))


def as_file(notebook: Notebook) -> bytes:
    """A notebook as Jupyter writes it to a file."""
    text: str = _nbformat().v4.writes(_nbformat().from_dict(_finite(notebook)))
    return f"{text}\n".encode("utf-8", "replace")


def as_members(head: dict[str, Any], notebook: Notebook) -> Iterator[bytes]:
    """The members of a JSON object, without its braces: those of ``head``, then ``notebook``, in pieces.

    In pieces, because each keeps all other threads waiting while it is made.
    """
    yield as_json(head)[1:-1] + b', "notebook": {"cells": ['
    for number, cell in enumerate(notebook["cells"]):
        yield (b", " if number else b"") + as_json(cell)
    rest = as_json({key: value for key, value in notebook.items() if key != "cells"})
    yield b"], " + rest[1:]


def as_json(value: object) -> bytes:
    """JSON that every parser takes: numbers that are none become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _cells_of(notebook: dict[str, Any], major: int) -> list[dict[str, Any]]:
    lists = [notebook.get("cells")]
    if major < 4:
        sheets = notebook.get("worksheets", [])
        if not isinstance(sheets, list) or not all(isinstance(sheet, dict) for sheet in cast("list[Any]", sheets)):
            raise InvalidRequest("the notebook's worksheets are not a list of objects")
        lists = [sheet.get("cells", []) for sheet in cast("list[dict[str, Any]]", sheets)]
    cells: list[Any] = []
    for part in lists:
        if not isinstance(part, list):
            raise InvalidRequest("the notebook's cells are not a list")
        cells += cast("list[Any]", part)
    if len(cells) > MAX_CELLS:
        raise InvalidRequest(f"the notebook has {len(cells)} cells, at most {MAX_CELLS} can be run")
    for number, cell in enumerate(cells):
        if not isinstance(cell, dict):
            raise InvalidRequest(f"cell {number} of the notebook is not an object")
    return cells


@cache
def _nbformat() -> Any:
    # With the first notebook, not before: it takes a second and 26 MB that a service without notebooks need not spend.
    # Of most of its functions it does not say what they take and give.
    import nbformat

    return nbformat


def _validate(notebook: Notebook) -> None:
    try:
        _nbformat().validate(notebook)
    except _nbformat().ValidationError as error:
        # Not str(error), which quotes what it is about at length.
        where = "".join(f"[{part!r}]" for part in getattr(error, "absolute_path", ()))
        why = str(getattr(error, "message", "") or error)[:300]
        raise InvalidRequest(f"the notebook is not valid{f' at {where[:200]}' if where else ''}: {why}") from None
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        raise InvalidRequest("the notebook is not valid") from None


def _check_content(notebook: Notebook) -> None:
    metadata = notebook["metadata"]
    language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language", "python")
    if not isinstance(language, str) or language.lower() not in _LANGUAGES:
        raise InvalidRequest(f"the notebook is written in {str(language)[:40]!r}; only Python can be run")
    for number, cell in enumerate(notebook["cells"]):
        if len(cell["source"]) > MAX_SOURCE:
            raise InvalidRequest(f"cell {number} of the notebook is longer than {MAX_SOURCE} characters")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_finite(part) for part in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
