"""How deep values may be nested: what is deeper cannot be walked through, or written as JSON again, by everybody."""

from typing import Final, cast

MAX_DEPTH: Final = 100
"""Python itself takes no literal with more than 200 brackets in each other, nbformat none with some hundreds."""


def is_too_deep(value: object) -> bool:
    """Whether lists and objects are in each other more than MAX_DEPTH times."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return False
    return True


def _parts(value: object) -> list[object]:
    match value:
        case dict():
            parts: list[object] = list(cast("dict[str, object]", value).values())
        case list():
            parts = cast("list[object]", value)
        case _:
            return []
    return [part for part in parts if isinstance(part, dict | list)]
