"""Notebooks that Jupyter opens although they break the schema: each cell is made anew as one of format 4.5.

Jupyter and papermill only log what is wrong with a notebook. Here it is mended where there is one thing that it can
mean, and left out where it says nothing of what is to be run; what cannot be run is refused.
"""

import re
from typing import Any, Final, cast
from uuid import uuid4

from interpreter.errors import InvalidRequest

_TEXT_KINDS: Final = {"markdown": "markdown", "heading": "markdown", "html": "markdown", "raw": "raw"}
_NO_ID: Final = re.compile(r"[^a-zA-Z0-9_-]+")
_ID_LENGTH: Final = 64
_LONGEST_TAGS: Final = 1_000
_MAX_LEVEL: Final = 6
_JSON_TYPE: Final = re.compile(r"application/(.*\+)?json")
_LANGUAGE_TEXTS: Final = ("file_extension", "mimetype", "pygments_lexer")


def repaired_cell(cell: dict[str, Any], number: int, major: int, taken: set[str]) -> dict[str, Any]:
    """A cell of format ``major``, the notebook's ``number``-th, as one of format 4.5 without outputs.

    Its id is none of ``taken``, and added to them. Raises InvalidRequest.
    """
    kind = cell.get("cell_type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"cell {number} of the notebook has no cell_type")
    source = _source_of(cell, kind, number, major)
    if kind == "heading":
        level = cell.get("level")
        # Bounded: it comes from anybody, and that many characters are made of it.
        hashes = "#" * (min(max(level, 1), _MAX_LEVEL) if type(level) is int else 1)
        # Not `splitlines`, which makes an object of each line.
        line = source.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")
        source = f"{hashes} {line}"
    made: dict[str, Any] = {
        "cell_type": "code" if kind == "code" else _TEXT_KINDS.get(kind, "raw"),
        "id": _id_of(cell.get("id"), taken),
        "metadata": _metadata_of(cell, major),
        "source": source,
    }
    if kind == "code":
        # They are made anew by the run, so it does not matter what they were.
        made |= {"execution_count": None, "outputs": []}
    elif _is_attachments(cell.get("attachments")):
        made["attachments"] = cell["attachments"]
    return made


def repaired_metadata(value: object, major: int) -> dict[str, Any]:
    """The metadata of a notebook of format ``major`` without what the schema of 4.5 does not allow."""
    metadata = dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {}
    kernelspec, language = metadata.pop("kernelspec", None), metadata.pop("language_info", None)
    if isinstance(kernelspec, dict) and (spec := _kernelspec(cast("dict[str, Any]", kernelspec))):
        metadata["kernelspec"] = spec
    if isinstance(language, dict) and isinstance(cast("dict[str, Any]", language).get("name"), str):
        metadata["language_info"] = {
            key: part for key, part in cast("dict[str, Any]", language).items() if _is_of_language(key, part)
        }
    # What nbformat writes when it converts, and what it leaves out then.
    for key in ("orig_nbformat", "orig_nbformat_minor", *(("name", "signature") if major < 4 else ())):
        metadata.pop(key, None)
    for key, kept in (("title", str), ("authors", list)):
        if key in metadata and not isinstance(metadata[key], kept):
            del metadata[key]
    return metadata


def new_id(taken: set[str]) -> str:
    """An id that is none of ``taken``."""
    while (cell_id := uuid4().hex[:8]) in taken:
        pass
    return cell_id


def _source_of(cell: dict[str, Any], kind: str, number: int, major: int) -> str:
    source: object = cell.get("input" if major < 4 and kind == "code" else "source")
    if source is None:
        return ""
    if not _is_lines(source):
        raise InvalidRequest(f"the source of cell {number} of the notebook is not text")
    lines = cast("str | list[str]", source)
    # Format 3 was also written with lines that have no ends.
    ended = isinstance(lines, str) or major >= 4 or not lines or lines[0].endswith(("\n", "\r"))
    return ("" if ended else "\n").join(lines)


def _id_of(value: object, taken: set[str]) -> str:
    """What was given as far as it can be an id; a new one when nothing of that is left, or another cell has it."""
    cell_id = _NO_ID.sub("-", value[: 2 * _ID_LENGTH]).strip("-")[:_ID_LENGTH] if isinstance(value, str) else ""
    if not cell_id or cell_id in taken:
        cell_id = new_id(taken)
    taken.add(cell_id)
    return cell_id


def _metadata_of(cell: dict[str, Any], major: int) -> dict[str, Any]:
    given: object = cell.get("metadata")
    metadata = dict(cast("dict[str, Any]", given)) if isinstance(given, dict) else {}
    if major < 4 and "collapsed" in cell:
        metadata.setdefault("collapsed", cell["collapsed"])
    if (tags := _tags(metadata.pop("tags", None))) is not None:
        metadata["tags"] = tags
    return {key: value for key, value in metadata.items() if _is_of_cell(key, value)}


def _tags(value: object) -> list[str] | None:
    if not isinstance(value, str | list):
        return None
    texts = [value] if isinstance(value, str) else cast("list[object]", value)
    # The comma is what separates tags where they are typed. A long text is none, and could be any number of them.
    short = [text for text in texts if isinstance(text, str) and len(text) <= _LONGEST_TAGS]
    tags = [tag.strip() for text in short for tag in text.split(",")]
    return list(dict.fromkeys(tag for tag in tags if tag and "\n" not in tag))


def _is_of_cell(key: str, value: object) -> bool:
    match key:
        case "collapsed":
            return isinstance(value, bool)
        case "scrolled":
            return isinstance(value, bool) or value == "auto"
        case "name":
            return isinstance(value, str) and value.strip() != ""
        case "format":
            return isinstance(value, str)
        case "jupyter":
            return isinstance(value, dict)
        case "execution":
            return isinstance(value, dict) and all(isinstance(part, str) for part in cast("Any", value).values())
        case _:
            return True


def _kernelspec(spec: dict[str, Any]) -> dict[str, Any] | None:
    names = [text for key in ("name", "display_name") if isinstance(text := spec.get(key), str)]
    return {**spec, "name": names[0], "display_name": names[-1]} if names else None


def _is_of_language(key: str, value: object) -> bool:
    if key == "codemirror_mode":
        return isinstance(value, str | dict)
    return key not in _LANGUAGE_TEXTS or isinstance(value, str)


def _is_attachments(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_bundle, cast("dict[str, object]", value).values()))


def _is_bundle(value: object) -> bool:
    return isinstance(value, dict) and all(
        _JSON_TYPE.fullmatch(kind) or _is_lines(part) for kind, part in cast("dict[str, object]", value).items()
    )


def _is_lines(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(line, str) for line in cast("list[object]", value))
    )
