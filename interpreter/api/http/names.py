"""Names of files in HTTP: in queries, in JSON, in Content-Disposition, and as clients send them in forms.

Inside they are text as `interpreter.kernel.paths` has it. In a URL each byte can be percent-encoded. JSON has only
text: there a name that is not UTF-8 is shown, and given beside it, or asked for, percent-encoded.
"""

import email.errors
import email.header
import re
import unicodedata
from typing import Annotated, Final
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from interpreter.errors import InvalidRequest
from interpreter.kernel.paths import MAX_PATH, name_bytes

_ABOUT_PATH: Final = "Relative paths start in the session's home folder. Any byte can be percent-encoded."
_PARAMETER: Final = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_ENCODED_WORDS: Final = re.compile(r"(?:=\?[\w-]+\?[bq]\?[^?\s]*\?=\s*)+", re.IGNORECASE)
_EXTENDED: Final = re.compile(r"([\w!#$%&+^`{}~.-]+)'[^']*'(\S+)")
_UNSAFE: Final = re.compile(r'[^ -~]|["%\\/]')


def shown(name: str) -> str:
    """A name as text for people: a byte that is not UTF-8 is shown as ``\\xff``."""
    return name_bytes(name).decode("utf-8", "backslashreplace")


def encoded(name: str) -> str | None:
    """A name percent-encoded, when it is not UTF-8; else None."""
    raw = name_bytes(name)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return quote(raw, safe="")
    return None


def decoded(text: str) -> str:
    """The name that percent-encoded text stands for."""
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")


class EncodedPath(BaseModel):
    """A path that is not UTF-8: its bytes percent-encoded, as in a URL."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"encoded": "caf%E9.csv"}})

    encoded: str = Field(min_length=1, max_length=3 * MAX_PATH)


def _kind(value: object) -> str:
    return "encoded" if isinstance(value, dict | EncodedPath) else "text"


JsonPath = Annotated[
    Annotated[str, Field(min_length=1, max_length=MAX_PATH), Tag("text")] | Annotated[EncodedPath, Tag("encoded")],
    Discriminator(_kind),
]
"""A path in a JSON body."""


def path_of(given: JsonPath) -> str:
    """The path that a JSON body gave."""
    return given if isinstance(given, str) else decoded(given.encoded)


# Not `def` below: FastAPI would run them in threads.
def _in_query(request: Request, key: str, default: str) -> str:
    # Starlette would replace what is not UTF-8, and read raw UTF-8 as Latin-1.
    query: bytes = request.scope["query_string"]
    text = query.decode("utf-8", "surrogateescape")
    values = [value for name, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape") if name == key]
    value = values[-1] if values else default
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


async def _file_path(
    request: Request,
    path: Annotated[
        str, Query(min_length=1, max_length=MAX_PATH, description=_ABOUT_PATH, examples=["data/sales.csv"])
    ],
) -> str:
    return _in_query(request, "path", path)


async def _folder_path(
    request: Request, path: Annotated[str, Query(min_length=1, max_length=MAX_PATH, description=_ABOUT_PATH)] = "."
) -> str:
    return _in_query(request, "path", path)


FilePath = Annotated[str, Depends(_file_path)]
"""The path of a request's query."""
FolderPath = Annotated[str, Depends(_folder_path)]
"""The same; the home folder when it has none."""


def attachment(name: str) -> str:
    """Content-Disposition of a file to be saved under its name.

    RFC 6266: ``filename*`` (RFC 8187) has any name; ``filename`` is for who reads no other, curl for one.
    """
    text = name_bytes(name).decode("utf-8", "replace").replace("\ufffd", "_")
    marks_apart = (c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = _UNSAFE.sub("_", "".join(marks_apart))
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='')}"


def form_name(name: str, disposition: str) -> str:
    """The path, below a folder, of a part of a form, by its ``filename`` and its whole Content-Disposition.

    ``filename*`` goes first, as RFC 6266 has it, and encoded words (RFC 2047) are decoded: .NET sends both. Browsers
    send the path of a file in a folder. Raises InvalidRequest for what leads out of the folder.
    """
    parameters = {key.lower(): value for key, value in _PARAMETER.findall(disposition)}
    name = _extended(parameters.get("filename*", "")) or _without_words(name)
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise InvalidRequest(f"{name[:200]!r} is not the name of a file")
    return name


def _extended(value: str) -> str | None:
    match = _EXTENDED.fullmatch(value.strip().strip('"'))
    if match is None:
        return None
    try:
        return unquote(match[2], match[1], "strict")
    except (UnicodeDecodeError, LookupError):
        return None


def _without_words(name: str) -> str:
    if not _ENCODED_WORDS.fullmatch(name):
        return name
    try:
        return str(email.header.make_header(email.header.decode_header(name))) or name
    except (email.errors.HeaderParseError, UnicodeDecodeError, LookupError):
        return name
