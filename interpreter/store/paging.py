"""Lists in pages, newest first: what part is asked for, and the cursor of the next one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from interpreter.errors import InvalidRequest

ORDER: Final = "ORDER BY created_at DESC, id DESC"
AFTER: Final = "(created_at, id) < (:time, :last)"
"""What comes after a cursor, with its `Position`'s values."""


class Listed(Protocol):
    """What can stand in such a list."""

    @property
    def id(self) -> str:
        """Unique in the list."""
        ...

    @property
    def created_at(self) -> float:
        """Seconds since 1970."""
        ...


T = TypeVar("T", bound=Listed)


@dataclass(frozen=True, slots=True)
class Page:
    """What part of a list is asked for. ``after`` is the cursor that the page before ended with."""

    limit: int = 50
    after: str | None = None

    @property
    def position(self) -> tuple[float, str] | None:
        """Time and id of the last one of the page before; None at the beginning. Raises InvalidRequest."""
        if self.after is None:
            return None
        time, _, last = self.after.partition("_")
        try:
            return float(time), last
        except ValueError:
            raise InvalidRequest("this is no cursor", hint="Take `next` of the page before") from None

    def holds(self, one: Listed) -> bool:
        """Whether it comes after the page before."""
        position = self.position
        return position is None or (one.created_at, one.id) < position

    def cut(self, newest: Sequence[T]) -> tuple[list[T], str | None]:
        """The page of what was found, of which there is one more than fits when there is a next page; its cursor."""
        kept = list(newest[: self.limit])
        more = len(newest) > self.limit
        return kept, f"{kept[-1].created_at!r}_{kept[-1].id}" if more else None
