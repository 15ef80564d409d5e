"""Tracebacks as IPython writes them, in the time that a plain shell needs.

IPython asks for each frame, several times, which module it belongs to; the code of a cell belongs to none that has a
file, so each time all modules are walked. With a thousand modules and a thousand frames that takes a minute. And to
mark the expression that failed it parses the whole file, which takes seconds with those of large libraries.
"""

import inspect
import os
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from IPython.core import ultratb
from IPython.core.tbtools import FrameInfo
from stack_data.core import RepeatedFrames

_ENDS = 10
"""How many frames are shown of either end of a long traceback."""

ultratb.FAST_THRESHOLD = 200
"""Lines from which on a file is not parsed; IPython has 10,000."""


class _LeftOut(RepeatedFrames):
    """Stands for the frames in the middle, as stack_data's own class does for such as are alike."""

    def __init__(self, count: int) -> None:
        self._count = count

    @property
    def description(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What is shown in their place."""
        return f"{self._count} more"


class QuickTraceback(ultratb.AutoFormattedTB):
    """IPython's formatter of exceptions."""

    def get_records(self, etb: TracebackType, context: int, tb_offset: int) -> Any:
        """The frames to show."""
        chain = list(_chain(etb))
        for link in chain:
            _note_module(link.tb_frame)
        if len(chain) <= 3 * _ENDS:
            return super().get_records(etb, context, tb_offset)
        first, last = (_joined(part) for part in (chain[:_ENDS], chain[-_ENDS:]))
        left_out: Any = FrameInfo._from_stack_data_FrameInfo(_LeftOut(len(chain) - 2 * _ENDS))  # noqa: SLF001  # pyright: ignore
        return [
            *super().get_records(first, context, tb_offset),
            left_out,
            *super().get_records(last, context, tb_offset),
        ]


def warm_up() -> None:
    """Format an exception once: what is read and kept for that then is there in every kernel."""
    try:
        raise ValueError
    except ValueError as error:
        QuickTraceback(mode="Context", theme_name="nocolor").structured_traceback(
            type(error), error, error.__traceback__
        )


def _note_module(frame: FrameType) -> None:
    """Put down which module a frame belongs to, where `inspect.getmodule` looks first."""
    file, name = frame.f_code.co_filename, frame.f_globals.get("__name__")
    # What has no file of its own, as a cell, belongs to a module that has none either.
    owner = name if file == frame.f_globals.get("__file__") and name in sys.modules else "__main__"
    known: dict[str, str] = inspect.modulesbyfile  # pyright: ignore
    known.setdefault(os.path.normcase(os.path.abspath(file)), owner)  # noqa: PTH100


def _chain(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _joined(links: list[TracebackType]) -> TracebackType:
    joined: TracebackType | None = None
    for link in reversed(links):
        joined = TracebackType(joined, link.tb_frame, link.tb_lasti, link.tb_lineno)
    if joined is None:
        raise ValueError("a traceback has at least one frame")
    return joined
