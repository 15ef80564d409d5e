"""The service's log tells where an error was raised, and quotes nothing that a user may have sent."""

import json
import logging
from collections.abc import Generator

import pytest
import structlog
from pydantic import BaseModel

from interpreter import HostError
from interpreter.cli import logs

SECRET = "hunter2"


class Body(BaseModel):
    """What a request may bring."""

    number: int


@pytest.fixture(autouse=True)
def restored() -> Generator[None]:
    root = logging.getLogger()
    handlers, level, before = root.handlers[:], root.level, structlog.get_config()
    uvicorn = logging.getLogger("uvicorn.error").level
    yield
    structlog.configure(**before)
    root.handlers[:], root.level = handlers, level
    logging.getLogger("uvicorn.error").setLevel(uvicorn)


def raised() -> Exception:
    """A validation's error that quotes its input, in a chain and a group."""
    try:
        try:
            Body.model_validate({"number": SECRET})
        except ValueError as error:
            raise LookupError(SECRET) from error
    except LookupError as error:
        return ExceptionGroup(SECRET, [error, HostError("the disk is full"), OSError(24, "Too many open files")])
    raise AssertionError


def test_errors_do_quote() -> None:
    with pytest.raises(ValueError, match=SECRET):
        Body.model_validate({"number": SECRET})


def test_a_line_of_the_log_has_the_place_and_the_kind_and_no_data(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().error("unexpected error", exc_info=raised())
    try:
        raise raised()
    except ExceptionGroup:
        structlog.get_logger().exception("unexpected error")
    said = "".join(capfd.readouterr())
    lines = [json.loads(line) for line in said.splitlines()]
    assert len(lines) == 2
    for line in lines:
        for told in ("test_logs.py", "ValidationError", "LookupError", "ExceptionGroup", "disk is full", "Too many"):
            assert told in line["exception"], told
    assert SECRET not in said


def test_what_libraries_log_neither(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logging.getLogger("asyncio").error("Task exception was never retrieved", exc_info=raised())
    said = "".join(capfd.readouterr())
    assert "never retrieved" in said
    assert "LookupError" in said
    assert SECRET not in said
