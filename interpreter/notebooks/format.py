"""Notebooks as they come in and go out: JSON, nbformat's schemas, versions 3 and 4. The one place that uses nbformat.

A notebook may come out of a session or from anybody who may call: nothing of it is taken for granted. All of this
takes time that grows with the notebook; callers run it in a thread.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, cast
from uuid import uuid4

from interpreter.errors import InvalidRequest, TooLarge
from interpreter.kernel.limits import check_json

Notebook = dict[str, Any]
"""A notebook of format 4.5, valid by its schema, with plain dictionaries and lists in it."""

MAX_CELLS: Final = 10_000
MAX_SOURCE: Final = 8_000_000
"""Characters of one cell: what one execution may have."""
_MAX_VALUES: Final = 2_000_000
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
    """A notebook of format 3 or 4 as one of 4.5, without its outputs. Changes ``value``. Raises InvalidRequest."""
    if not isinstance(value, dict):
        raise InvalidRequest("a notebook is a JSON object with nbformat and cells")
    given = cast("dict[str, Any]", value)
    major, minor = given.get("nbformat"), given.get("nbformat_minor", 0)
    if type(major) is not int or type(minor) is not int or minor < 0:
        raise InvalidRequest("this is not a notebook: it has no nbformat", hint="Send the content of an .ipynb file")
    if major not in {3, 4}:
        raise InvalidRequest(f"notebooks of format {str(major)[:20]} cannot be run", hint="Save it in format 4")
    # One from the future is held to the newest schema that is known; nbformat keeps a schema for each number it sees.
    given["nbformat_minor"] = minor = min(minor, _MINOR) if major == 4 else 0
    cells = _cells_of(given, major)
    if major == 4 and any("id" in cell for cell in cells):
        # Only cells of 4.5 have ids, whatever the notebook says of itself.
        given["nbformat_minor"] = minor = _MINOR
    for cell in cells:
        if cell.get("cell_type") == "code":
            # They are made anew, so it does not matter what they are.
            cell["outputs"] = []
            cell["execution_count" if major == 4 else "prompt_number"] = None
    if major == 4 and minor == _MINOR:
        _repair_ids(cells)
    if major == 3:
        for cell in cells:
            cell.pop("prompt_number", None)
    _validate(given, major, minor)
    notebook = _upgraded(given, major, minor)
    _repair_ids(notebook["cells"])
    _validate(notebook, 4, _MINOR)
    _check_content(notebook)
    return notebook


def new_cell(source: str, tags: list[str], taken: set[str]) -> dict[str, Any]:
    """A code cell whose id is none of ``taken``."""
    cell_id = _new_id(taken)
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": cell_id,
        "metadata": {"tags": tags},
        "outputs": [],
        "source": source,
    }


def tags_of(cell: dict[str, Any]) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


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
    if major == 3:
        sheets = notebook.get("worksheets")
        if not isinstance(sheets, list) or not all(isinstance(sheet, dict) for sheet in cast("list[Any]", sheets)):
            raise InvalidRequest("the notebook's worksheets are not a list of objects")
        lists = [sheet.get("cells") for sheet in cast("list[dict[str, Any]]", sheets)]
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


def _repair_ids(cells: list[dict[str, Any]]) -> None:
    """Give an id to each cell that has none, or another one's. What is no id at all is left for the schema to tell."""
    taken: set[str] = set()
    for cell in cells:
        cell_id = cell.setdefault("id", None)
        if cell_id is None or (isinstance(cell_id, str) and cell_id in taken):
            cell_id = cell["id"] = _new_id(taken)
        if isinstance(cell_id, str):
            taken.add(cell_id)


def _new_id(taken: set[str]) -> str:
    while (cell_id := uuid4().hex[:8]) in taken:
        pass
    return cell_id


@cache
def _nbformat() -> Any:
    # With the first notebook, not before: it takes a second and 26 MB that a service without notebooks need not spend.
    # Of most of its functions it does not say what they take and give.
    import nbformat

    return nbformat


def _validate(notebook: dict[str, Any], major: int, minor: int) -> None:
    try:
        _nbformat().validate(notebook, version=major, version_minor=minor)
    except _nbformat().ValidationError as error:
        # Not str(error), which quotes what it is about at length.
        where = "".join(f"[{part!r}]" for part in getattr(error, "absolute_path", ()))
        why = str(getattr(error, "message", "") or error)[:300]
        raise InvalidRequest(f"the notebook is not valid{f' at {where[:200]}' if where else ''}: {why}") from None
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        raise InvalidRequest("the notebook is not valid") from None


def _upgraded(notebook: dict[str, Any], major: int, minor: int) -> Notebook:
    try:
        node = _nbformat().versions[major].to_notebook_json(notebook, minor=minor)
        upgraded: Notebook = _plain(_nbformat().v4.upgrade(_nbformat().convert(node, 4)))
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError, _nbformat().ValidationError):
        raise InvalidRequest(f"the notebook of format {major} cannot be made one of format 4") from None
    for key in ("orig_nbformat", "orig_nbformat_minor"):
        upgraded["metadata"].pop(key, None)
    return upgraded


def _check_content(notebook: Notebook) -> None:
    metadata = notebook["metadata"]
    language = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language", "python")
    if not isinstance(language, str) or language.lower() not in _LANGUAGES:
        raise InvalidRequest(f"the notebook is written in {str(language)[:40]!r}; only Python can be run")
    for number, cell in enumerate(notebook["cells"]):
        if len(cell["source"]) > MAX_SOURCE:
            raise InvalidRequest(f"cell {number} of the notebook is longer than {MAX_SOURCE} characters")


def _plain(value: Any) -> Any:
    # nbformat's nodes copy what is put into them, so that nothing that was put there can be changed later.
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_plain(part) for part in cast("list[Any]", value)]
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_finite(part) for part in cast("list[Any]", value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value
