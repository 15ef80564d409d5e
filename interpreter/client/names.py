"""Names of a session's files in requests: text, with a lone surrogate for each byte that is not UTF-8."""

from collections.abc import Mapping
from urllib.parse import quote, unquote_to_bytes, urlencode


def query_of(params: Mapping[str, str | int | float | bool | None]) -> str:
    """The query of a URL; what is None is left out. Raises UnicodeEncodeError for what is no name and no text."""
    given = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in params.items()
        if value is not None
    }
    return urlencode(given, errors="surrogateescape", quote_via=quote)


def in_json(path: str) -> str | dict[str, str]:
    """A path in a JSON body: text, or encoded where it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        try:
            return {"encoded": quote(path, safe="", errors="surrogateescape")}
        except UnicodeEncodeError:
            # The service says what it thinks of it.
            return path
    return path


def from_encoded(text: str) -> str:
    """The name that percent-encoded bytes are."""
    return unquote_to_bytes(text).decode("utf-8", "surrogateescape")
