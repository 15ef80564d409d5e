"""ipykernel's kernel and shell, with what a session does otherwise than a stock kernel.

A cell that awaits can be interrupted; ``exit()`` ends the code as ``sys.exit()`` does, and a console when it stands
alone; tracebacks are quick; a cell with the line ends of Windows runs.
"""

# IPython has few types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import asyncio
import re
import signal
import sys
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from ipykernel.zmqshell import ZMQInteractiveShell
from IPython.core.autocall import ZMQExitAutocall
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type, default

from kernel_guest.kernel.interrupts import Stage, cancelled_by_interrupt, stage_of
from kernel_guest.kernel.tracebacks import QuickTraceback

_AFTER_EXIT = "The code ended here. The kernel goes on with its variables; restart it to begin anew."


_ONLY_EXIT = re.compile(r"\s*(exit|quit)\s*(\(\s*(keep_kernel\s*=\s*(True|False))?\s*\))?\s*;?\s*")


class _Exit(ZMQExitAutocall):
    """``exit`` and ``quit``: end the code that runs. A stock kernel runs it to its end, and ends itself then."""

    alone = False
    """Whether the code that runs is nothing else: then a person leaves a console."""

    def __call__(self, code: object = None, *, keep_kernel: bool = False) -> None:
        if not self.alone:
            raise SystemExit(code)
        shell: Any = self._ip
        # A console leaves when it is told so; it ends the kernel that it started, unless it is told to keep it.
        shell.payload_manager.write_payload({"source": "ask_exit", "keepkernel": keep_kernel})
        sys.stderr.write(f"{_AFTER_EXIT}\n")


class SessionShell(ZMQInteractiveShell):
    """The shell of a session's kernel."""

    @default("exiter")
    def _default_exiter(self) -> ZMQExitAutocall:
        return _Exit(self)

    def init_traceback_handlers(self, custom_exceptions: Any) -> None:
        """Called once, when the shell is made."""
        super().init_traceback_handlers(custom_exceptions)
        self.InteractiveTB = QuickTraceback(mode=self.xmode, theme_name=self.colors, tb_offset=1)
        # What it advises to is no way to end a session.
        warnings.filterwarnings("ignore", message="To exit: use 'exit', 'quit', or Ctrl-D")

    def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
        if issubclass(etype, SystemExit):
            stb = [f"{etype.__name__}: {evalue}", _AFTER_EXIT]
        super()._showtraceback(etype, evalue, stb)

    def _format_exception_for_storage(self, exception: BaseException, *arguments: Any, **options: Any) -> Any:
        # IPython formats each exception a second time, for its history.
        if self._last_traceback is None:
            return super()._format_exception_for_storage(exception, *arguments, **options)
        return {
            "ename": type(exception).__name__,
            "evalue": str(exception),
            "traceback": self._last_traceback,
        }


class SessionKernel(IPythonKernel):
    """The kernel of a session."""

    shell_class = Type(SessionShell)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._idle = asyncio.Event()
        self._idle.set()

    async def do_execute(self, code: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run a cell."""
        if threading.current_thread() is not threading.main_thread():
            # A subshell; the kernel does not wait for it.
            return await super().do_execute(code.replace("\r\n", "\n"), *arguments, **options)
        self._idle.clear()
        try:
            shell: Any = self.shell
            shell.exiter.alone = _ONLY_EXIT.fullmatch(code) is not None
            # As Python reads them in its own files; a shell or another program would stumble over them.
            return await super().do_execute(code.replace("\r\n", "\n"), *arguments, **options)
        except KeyboardInterrupt as error:
            # Of IPython's own work on the cell, before its code or after it. A stock kernel loses the reply.
            return self._interrupted(error)
        finally:
            # What comes from here on is too late, until the next request.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._idle.set()

    def _interrupted(self, error: KeyboardInterrupt) -> dict[str, Any]:
        shell: Any = self.shell
        shell.showtraceback((type(error), error, error.__traceback__))
        lines = shell._last_traceback or []  # noqa: SLF001  (ipykernel itself has it from there)
        told = {"ename": "KeyboardInterrupt", "evalue": str(error), "traceback": lines}
        return {"status": "error", "execution_count": shell.execution_count - 1, "user_expressions": {}, **told}

    async def end(self) -> None:
        """Leave the event loop, once the cell that runs has ended: it may have something to close."""
        await self._idle.wait()
        self.io_loop.stop()

    def stage(self) -> Stage:
        """Where the main thread is; for other threads."""
        return stage_of(threading.main_thread().ident or 0, self._is_users)

    def _is_users(self, frame: FrameType) -> bool:
        return self.shell is not None and frame.f_globals is self.shell.user_ns

    @contextmanager
    def _cancel_on_sigint(self, future: "asyncio.Future[Any]") -> Generator[None]:
        with cancelled_by_interrupt(future, InteractiveShell.run_code.__code__, self._is_users):
            yield
