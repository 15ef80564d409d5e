"""Plots of matplotlib in a kernel: shown at the end of their cell, also with a backend that is for files alone."""

import logging
import os
import re
import sys
import warnings
from typing import Any

_INLINE = "module://matplotlib_inline.backend_inline"
_OF_FILES = {"agg", "cairo", "pdf", "pgf", "ps", "svg", "template"}
_GLYPH = re.compile(r"Glyph \d+ \(.*\) missing from (?P<fonts>font\(s\) .*)", re.DOTALL)
_CODE = re.compile(r"Glyph (\d+)")


class Plots:
    """What is done for matplotlib after each cell; ``shell`` is IPython's."""

    def __init__(self, shell: Any) -> None:
        self._missing: dict[str, list[str]] = {}
        self._show_warning = warnings.showwarning
        warnings.showwarning = self._take_warning
        logging.getLogger("matplotlib.font_manager").addFilter(_Once())
        shell.events.register("post_execute", self.show_what_is_in_memory)
        # Later than that, and than the inline backend's own showing, which is what warns.
        shell.events.register("post_run_cell", self.tell_of_missing_glyphs)
        if "matplotlib" in sys.modules and os.environ.get("MPLBACKEND", _INLINE) == _INLINE:
            # Imported in the zygote, before there was a shell that plots could be shown in.
            shell.enable_matplotlib("inline")
            sys.modules["matplotlib"].rcParams["backend"] = _INLINE

    def show_what_is_in_memory(self) -> None:
        """Show what the code drew on a canvas in memory; such a backend ends with the cell that chose it.

        Code for scripts often asks for "Agg", to need no screen. In a kernel that would end all plots without a word.
        """
        pyplot = sys.modules.get("matplotlib.pyplot")
        backend = pyplot.get_backend().lower() if pyplot else ""
        if pyplot and backend in _OF_FILES and os.environ.get("MPLBACKEND", "").lower() != backend:
            pyplot.switch_backend(_INLINE)
            sys.modules["matplotlib_inline.backend_inline"].show(close=True)

    def tell_of_missing_glyphs(self, _: Any) -> None:
        """Name the characters that no font has, once for each cell."""
        for fonts, characters in self._missing.items():
            text = "".join(dict.fromkeys(characters))
            print(f"UserWarning: matplotlib draws boxes for {text}: missing from {fonts}", file=sys.stderr)  # noqa: T201
        self._missing.clear()

    def _take_warning(self, message: Any, category: Any, *arguments: Any, **options: Any) -> None:
        # One for each character of a text in Chinese, each again for each time that it is drawn, are pages of warnings.
        if (found := _GLYPH.match(str(message))) and (code := _CODE.match(str(message))):
            self._missing.setdefault(found["fonts"].rstrip("."), []).append(chr(int(code[1])))
        else:
            self._show_warning(message, category, *arguments, **options)


class _Once(logging.Filter):
    """Lets each message of a logger pass once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        seen = message in self._seen
        self._seen.add(message)
        return not seen
