"""Errors are part of the interface: a code each, all of them in the tree that the module shows."""

from interpreter import errors
from interpreter.errors import InterpreterError


def classes() -> list[type[InterpreterError]]:
    return [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, InterpreterError)]


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [error.code for error in classes()]
    assert len(set(codes)) == len(codes)


def test_the_tree_shows_every_error() -> None:
    assert [error.__name__ for error in classes() if error.__name__ not in (errors.__doc__ or "")] == []


def test_a_hint_follows_the_message() -> None:
    assert str(errors.DiskFull("no room", hint="Free some")) == "no room. Free some"
