"""What the service's log says of an error: where it was raised, of what kind, and no data that it may carry."""

import logging
import sys
import traceback
from typing import Any

import structlog

from interpreter.errors import InterpreterError


def describe(error: BaseException) -> str:
    """A traceback without the words of errors that are not the system's or ours: they may quote what a user sent."""
    lines: list[str] = []
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        lines += [describe(before), "\nand then:\n"]
    lines += traceback.format_tb(error.__traceback__)
    says = isinstance(error, OSError | InterpreterError)
    lines.append(f"{type(error).__qualname__}: {error}" if says else type(error).__qualname__)
    if isinstance(error, BaseExceptionGroup):
        inner: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        lines += [f"\n{number}. {describe(one)}" for number, one in enumerate(inner, 1)]
    return "".join(lines)


def configure() -> None:
    """Have structlog and the libraries' loggers write to standard error so."""
    handler = logging.StreamHandler(sys.stderr)
    # One line, and no picture of a library's variables, which may be a user's data.
    handler.setFormatter(_Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # An exception that reaches uvicorn was logged by the application already.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _with_error,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
    )


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802  (logging's own name)
        return describe(ei[1])


def _with_error(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else sys.exc_info()[1] if given else None
    if error is not None:
        event["exception"] = describe(error)
    return event
