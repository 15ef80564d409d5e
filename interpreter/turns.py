"""Work that is too long for one turn of the event loop, as a generator that yields where others may have theirs."""

import asyncio
from collections.abc import Generator
from typing import Final, TypeVar

MUCH: Final = 1024 * 1024
"""Bytes from which on work is done in steps: a turn for others after each costs more than it is worth for less."""

T = TypeVar("T")
Steps = Generator[None, None, T]


def at_once(steps: Steps[T]) -> T:
    """What it returns, with nobody's turn in between."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


async def in_turns(steps: Steps[T]) -> T:
    """What it returns, with a turn for others after each step."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        await asyncio.sleep(0)
