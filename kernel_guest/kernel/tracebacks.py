"""Tracebacks as IPython writes them, in the time that a plain shell needs, and with the lines that failed.

IPython asks for each frame, several times, which module it belongs to; the code of a cell belongs to none that has a
file, so each time all modules are walked. With a thousand modules and a thousand frames that takes a minute. To mark
the expression that failed it parses whole files, which takes seconds with those of large libraries. And of a cell it
shows the line that a frame has come to since, in a ``finally`` for example, not the one that raised.
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
_LINES = 3
"""How many lines before the one that failed are shown of a library, and after it one less."""


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

    def get_records(self, etb: TracebackType, context: int, tb_offset: int) -> Any:  # noqa: ARG002  (IPython passes it)
        """The frames to show. Those of IPython itself are left out, as it does."""
        links = [link for link in _chain(etb) if not _is_ipythons(link.tb_frame)]
        if len(links) <= 3 * _ENDS:
            return [_record(link, context) for link in links]
        first, last = ([_record(link, context) for link in part] for part in (links[:_ENDS], links[-_ENDS:]))
        left_out: Any = FrameInfo._from_stack_data_FrameInfo(_LeftOut(len(links) - 2 * _ENDS))  # noqa: SLF001  # pyright: ignore
        return [*first, left_out, *last]


def warm_up() -> None:
    """Format an exception once: what is read and kept for that then is there in every kernel."""
    try:
        raise ValueError
    except ValueError as error:
        QuickTraceback(mode="Context", theme_name="nocolor").structured_traceback(
            type(error), error, error.__traceback__
        )


def _chain(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _record(link: TracebackType, context: int) -> Any:
    frame = link.tb_frame
    file, name = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
    is_modules = file == frame.f_globals.get("__file__") and name in sys.modules
    # Where `inspect.getmodule` looks first. What has no file of its own, as a cell, belongs to a module without one.
    known: dict[str, str] = inspect.modulesbyfile  # pyright: ignore
    known.setdefault(os.path.normcase(os.path.abspath(file)), name if is_modules else "__main__")  # noqa: PTH100
    # Of a cell as many as IPython shows.
    lines = _LINES if is_modules else context - 1
    return FrameInfo("Raw frame", file, link.tb_lineno, frame, frame.f_code, context=lines)


def _is_ipythons(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).split(".")[0] == "IPython"
