"""Runs a Python file in a kernel as ``python FILE`` does. Sent there as text: it needs nothing of this package."""

import asyncio
import atexit
import concurrent.futures.thread
import inspect
import io
import linecache
import os
import sys
import threading
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any


def run_script(shell: Any, path: str, arguments: Iterable[str]) -> None:
    """Run the file at ``path`` as the program ``__main__`` of IPython's ``shell``, whose variables stay.

    Raises what the file raises, with a traceback that begins in it; SystemExit only with a number that is not 0.
    """
    linecache.checkcache(path)
    namespace: dict[str, Any] = shell.user_ns
    with _as_program(namespace, path, list(arguments)), _without_loop():
        try:
            with _exit_functions(namespace):
                _run(path, namespace)
        except SystemExit as end:
            if status := _status(end.code):
                raise SystemExit(status) from None
        except BaseException as error:
            _begin_in_the_file(shell, error, path)
            raise
        finally:
            _flush(namespace)


def _run(path: str, namespace: dict[str, Any]) -> None:
    before = set(threading.enumerate())
    with open(path, "rb") as file:  # noqa: PTH123  (as bytes: Python knows of marks and coding lines)
        code = compile(file.read(), path, "exec", dont_inherit=True)
    try:
        exec(code, namespace)  # noqa: S102  (it is what this is for)
    finally:
        # Python waits for them before it ends. Idle threads of pools it tells to end, which cannot be done here.
        pools = getattr(concurrent.futures.thread, "_threads_queues", {})
        for thread in threading.enumerate():
            if thread not in before and not thread.daemon and thread not in pools:
                thread.join()


@contextmanager
def _exit_functions(namespace: dict[str, Any]) -> Generator[None]:
    """What the file itself registers with atexit runs at its end; what libraries do, at the kernel's."""
    module: Any = atexit
    register, unregister = module.register, module.unregister
    registered: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def note(function: Any, *arguments: Any, **options: Any) -> Any:
        caller = inspect.currentframe()
        caller = caller and caller.f_back
        if caller is None or caller.f_globals is not namespace or module.register is not note:
            return register(function, *arguments, **options)
        registered.append((function, arguments, options))
        return function

    def forget(function: Any) -> None:
        registered[:] = [one for one in registered if one[0] != function]
        unregister(function)

    module.register, module.unregister = note, forget
    try:
        yield
    finally:
        while registered:
            function, arguments, options = registered.pop()
            try:
                function(*arguments, **options)
            except Exception:
                # It keeps nothing else from its end.
                sys.stderr.write(f"Exception ignored in atexit callback {function!r}:\n")
                traceback.print_exc()
        module.register, module.unregister = register, unregister


@contextmanager
def _as_program(namespace: dict[str, Any], path: str, arguments: list[str]) -> Generator[None]:
    folder = os.path.dirname(path)  # noqa: PTH120
    names = {"__name__": "__main__", "__file__": path, "__doc__": None}
    kept = {name: namespace[name] for name in names if name in namespace}
    argv = sys.argv
    sys.argv = [path, *arguments]
    sys.path.insert(0, folder)
    namespace.update(names)
    try:
        yield
    finally:
        for name in names:
            namespace.pop(name, None)
        namespace.update(kept)
        with suppress(ValueError):
            sys.path.remove(folder)
        sys.argv = argv


@contextmanager
def _without_loop() -> Generator[None]:
    """The kernel's event loop is out of sight: the file may run its own, as a program does."""
    events: Any = asyncio.events
    running, policy = events._get_running_loop(), events.get_event_loop_policy()  # noqa: SLF001
    events._set_running_loop(None)  # noqa: SLF001
    # Another one: its loop for this thread is none, or a new one that the file asks for.
    events.set_event_loop_policy(None)
    try:
        yield
    finally:
        events.set_event_loop_policy(policy)
        events._set_running_loop(running)  # noqa: SLF001


def _status(code: object) -> int:
    """What Python ends with, once it has told what there is to tell."""
    if code is None:
        return 0
    if isinstance(code, int):
        return int(code)
    print(code, file=sys.stderr)  # noqa: T201
    return 1


def _begin_in_the_file(shell: Any, error: BaseException, path: str) -> None:
    """Have IPython leave out what has led to the file when it shows the error."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename != path:
        first = first.tb_next
    if not isinstance(error, SyntaxError):
        lines = shell.InteractiveTB.structured_traceback(type(error), error, first, tb_offset=0)
        with suppress(AttributeError, TypeError):
            error._render_traceback_ = lambda: lines  # type: ignore[attr-defined]
        return
    # It asks those alone not how they want to be shown.
    before = shell.SyntaxTB
    lines = before.structured_traceback(type(error), error, traceback.extract_tb(first))

    def once(*_: object, **__: object) -> Any:
        shell.SyntaxTB = before
        return lines

    shell.SyntaxTB = SimpleNamespace(structured_traceback=once)


def _flush(namespace: dict[str, Any]) -> None:
    # Python closes them when it ends; here they stay with the variables.
    for value in list(namespace.values()):
        if issubclass(type(value), io.TextIOWrapper | io.BufferedWriter | io.BufferedRandom):
            with suppress(OSError, ValueError):
                value.flush()
