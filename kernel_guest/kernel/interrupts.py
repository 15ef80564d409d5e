"""Interrupts of cells that await, and what becomes of an interrupt.

ipykernel means to cancel such a cell, but its handler's callback does not wake the event loop, so nothing happens until
the loop wakes by itself. And code between two awaits would never see the interrupt.
"""

import asyncio
import dis
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, Literal

from IPython.core.events import EventManager

_AGAIN_SECONDS = 0.05
_SAMPLES = 5
_SAMPLE_SECONDS = 0.01

IsUsers = Callable[[FrameType], bool]
"""Tells the frames of the user's own code."""
Stage = Literal["runs", "calls", "ends"]
"""Where the kernel's main thread is: in the user's code, in a call from there that is no Python, in neither."""


@contextmanager
def cancelled_by_interrupt(cell: "asyncio.Future[Any]", runner: CodeType, is_users: IsUsers) -> Generator[None]:
    """Have SIGINT end ``cell``, a task of the running loop, until the block is left.

    Where the cell's own code runs (``runner`` is the function that runs it) KeyboardInterrupt is raised, as in a cell
    that awaits nothing. Where it waits, it gets CancelledError; so does other code of the user's that runs at that
    moment, in a task for example: the loop outlives that error, and no other.
    """
    loop = asyncio.get_running_loop()
    main = threading.get_ident()

    def look_again() -> None:
        if not cell.done():
            signal.pthread_kill(main, signal.SIGINT)

    def interrupt(_: int, frame: FrameType | None) -> None:
        place = _place(frame, runner, is_users)
        if place == "cell" or (place == "callback" and cell.done()):
            raise KeyboardInterrupt
        if cell.done():
            return
        if asyncio.current_task(loop) is cell:
            # IPython's part, before the code or after it. An error there would end the loop; a cell that is cancelled
            # before it has begun, or that does not wait any more, would have no reply.
            threading.Timer(_AGAIN_SECONDS, look_again).start()
        elif place == "elsewhere":
            loop.call_soon_threadsafe(cell.cancel)
        else:
            # At once: else the next task of the same kind would begin before the loop sees to the cell.
            cell.cancel()
            raise asyncio.CancelledError

    before = signal.getsignal(signal.SIGINT)
    # For what comes with it: a signal wakes the loop by a descriptor. One that comes right before the loop waits
    # would be seen when something else wakes it, else.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)


def _place(
    frame: FrameType | None, runner: CodeType, is_users: IsUsers
) -> Literal["cell", "callback", "user", "elsewhere"]:
    """What the main thread runs: the cell's code, what IPython calls after a cell, other code of the user's."""
    users = False
    for one in _stack(frame):
        if one.f_code is runner and users:
            return "cell"
        if one.f_code is EventManager.trigger.__code__:
            return "callback"
        users = users or is_users(one)
    return "user" if users else "elsewhere"


def wake_on_urgency() -> None:
    """Have SIGURG do nothing but end what the main thread waits in, so that it looks at the signals before that.

    An interrupt that comes right before code begins to wait, in ``time.sleep`` for example, is noted and not seen: the
    agent sends this signal after it.
    """

    def nothing(_: int, __: FrameType | None) -> None:
        return

    signal.signal(signal.SIGURG, nothing)


def stage_of(main: int, is_users: IsUsers) -> Stage:
    """Where the main thread is; called in another one. When it does not return, that is in a call that holds Python's
    lock.
    """
    frames: Any = sys
    seen: set[tuple[int, int]] = set()
    calls = True
    for _ in range(_SAMPLES):
        frame: FrameType | None = frames._current_frames().get(main)  # noqa: SLF001  (there is no public name for it)
        if frame is None or not any(is_users(one) for one in _stack(frame)):
            return "ends"
        seen.add((id(frame), frame.f_lasti))
        calls = calls and not _is_jump(frame)
        time.sleep(_SAMPLE_SECONDS)
    return "calls" if len(seen) == 1 and calls else "runs"


def _is_jump(frame: FrameType) -> bool:
    # An empty loop stands at one place as well, and calls nothing.
    return dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("JUMP", "POP_JUMP", "RESUME"))


def _stack(frame: FrameType | None) -> Generator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
