"""Interrupts of cells that await.

ipykernel means to cancel such a cell, but its handler's callback does not wake the event loop, so nothing happens until
the loop wakes by itself. And code between two awaits would never see the interrupt.
"""

import asyncio
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any


@contextmanager
def cancelled_by_interrupt(
    cell: "asyncio.Future[Any]", runner: CodeType, is_users: Callable[[FrameType], bool]
) -> Generator[None]:
    """Have SIGINT end ``cell``, a future of the running loop, until the block is left.

    Where the cell's own code runs (``runner`` is the function that runs it) KeyboardInterrupt is raised, as in a cell
    that awaits nothing. Where it waits, it gets CancelledError; so does other code of the user's (``is_users`` tells
    its frames) that runs at that moment, in a task for example: the loop outlives that error, and no other.
    """
    loop = asyncio.get_running_loop()

    def interrupt(_: int, frame: FrameType | None) -> None:
        stack = list(_stack(frame))
        if any(one.f_code is runner for one in stack):
            raise KeyboardInterrupt
        if any(is_users(one) for one in stack):
            # At once: else the next task of the same kind would begin before the loop sees to the cell.
            cell.cancel()
            raise asyncio.CancelledError
        loop.call_soon_threadsafe(cell.cancel)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stack(frame: FrameType | None) -> Generator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
