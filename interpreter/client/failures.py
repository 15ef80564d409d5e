"""Errors of the service as the package's own exceptions."""

import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from interpreter.errors import (
    Busy,
    CommandNotStarted,
    GuestRefused,
    InterpreterError,
    NotFound,
    ServiceError,
    TooLarge,
    Unauthorised,
)


def _classes(root: type[InterpreterError]) -> Iterator[type[InterpreterError]]:
    for kind in root.__subclasses__():
        yield kind
        yield from _classes(kind)


_KINDS: Final = {kind.code: kind for kind in _classes(InterpreterError)}
_STATUSES: Final[dict[int, type[ServiceError]]] = {401: Unauthorised, 404: NotFound, 413: TooLarge, 429: Busy}
"""For answers that are not the service's own but those of a proxy in front of it."""
_LONGEST_TEXT: Final = 200


def error_from_code(
    code: str, message: str, hint: str | None = None, *, retry_after: float | None = None
) -> InterpreterError:
    """The exception for an error's code; ServiceError for a code that this package does not know.

    ``retry_after`` is in seconds and matters to Busy errors only.
    """
    kind = _KINDS.get(code)
    if kind is None:
        return ServiceError(f"{code}: {message}", hint=hint)
    if issubclass(kind, GuestRefused | CommandNotStarted):
        # The guest's own word does not come over REST.
        return kind(message, guest_code="", hint=hint)
    if issubclass(kind, Busy) and retry_after is not None:
        return kind(message, hint=hint, retry_after=round(retry_after))
    return kind(message, hint=hint)


def error_from_result(error: Mapping[str, Any] | None, otherwise: str) -> InterpreterError:
    """The exception for the ``error`` of a result that is a failure; ``otherwise`` says what happened without one."""
    told = error or {}
    return error_from_code(
        str(told.get("code") or "service"), str(told.get("message") or otherwise), _text_or_none(told.get("hint"))
    )


def error_from_answer(status: int, body: bytes, *, retry_after: float | None = None) -> InterpreterError:
    """The exception for an answer with an error status."""
    try:
        told: Any = json.loads(body)["error"]
        code, message, hint = str(told["code"]), str(told["message"]), _text_or_none(told.get("hint"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _foreign(status, body, retry_after)
    return error_from_code(code, message, hint, retry_after=retry_after)


def _foreign(status: int, body: bytes, retry_after: float | None) -> ServiceError:
    try:
        phrase = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = str(status)
    text = " ".join(body[: 4 * _LONGEST_TEXT].decode("utf-8", "replace").split())[:_LONGEST_TEXT]
    message = f"the answer was {phrase}, in a form that is not the service's" + (f": {text}" if text else "")
    hint = "Look whether INTERPRETER_URL leads to the service, and what is between"
    kind = _STATUSES.get(status, ServiceError)
    if issubclass(kind, Busy) and retry_after is not None:
        return kind(message, hint=hint, retry_after=round(retry_after))
    return kind(message, hint=hint)


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
