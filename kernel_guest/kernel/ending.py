"""How a kernel ends: with what a Python program does at its end, but without taking thousands of modules apart."""

import atexit
import gc
import io
import logging
import sys
import threading
from typing import Any, cast

from zmq.utils import garbage

_WRITERS = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)


def end_python() -> None:
    """Wait for threads, run what was registered with atexit, close or flush every file that is still open.

    IPython's own part in atexit empties the user's namespace, so objects there are finalized as well. What is left
    then belongs to modules; of those only the files matter, as the process ends right after.
    """
    # pyzmq's own would free what ZeroMQ still sends.
    collector: Any = garbage.gc
    atexit.unregister(collector._atexit)  # noqa: SLF001
    private: Any = threading
    private._shutdown()  # noqa: SLF001  (there is no public name for what Python does first at its end)
    runner: Any = atexit
    runner._run_exitfuncs()  # noqa: SLF001
    # Nobody takes what is logged now.
    logging.raiseExceptions = False
    gc.collect()
    for found in cast("list[object]", gc.get_objects()):
        # By its type: `isinstance` would ask proxies, which may do anything.
        if issubclass(type(found), _WRITERS):
            _flush(cast("io.IOBase", found))
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            _flush(stream)


def _flush(file: "io.IOBase | Any") -> None:
    try:
        if not file.closed:
            file.flush()
    except Exception:  # noqa: S110  (a file that cannot be written must not keep the others from it)
        pass
