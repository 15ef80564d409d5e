"""A session's kernel: one context of the guest, and what can be done with it."""

import asyncio
import contextlib
from collections.abc import Callable, Generator
from typing import Final, Literal

import structlog

from interpreter.errors import (
    GuestMisbehaved,
    GuestRefused,
    GuestUnresponsive,
    InterpreterError,
    KernelDied,
    SessionEnded,
)
from interpreter.kernel.connection import KernelConnection
from interpreter.kernel.control import AgentControl, AgentEvent, integer
from interpreter.kernel.execution import Execution, ExecutionOptions
from interpreter.rate import Rate

log = structlog.get_logger(__name__)

CALL_TIMEOUT: Final = 10.0
RESTART_TIMEOUT: Final = 120.0
"""A kernel is forked from a warm process; only when the guest has lost that one must it import all anew."""

KernelChange = Literal["restarting", "restarted", "died", "ended"]
"""What happens to a kernel: it is restarted when told to, it died by itself, or its machine is gone for good."""
OnChange = Callable[[KernelChange, int | None], None]
"""Told of changes; the number is the exit status of a kernel that died, negative for a signal, None when unknown."""


class Kernel:
    """One kernel of a session, named by its context; the same over all its restarts."""

    def __init__(self, session_id: str, context: str, control: AgentControl, connection: KernelConnection) -> None:
        self.context = context
        self.connection = connection
        self.watchers: list[OnChange] = []
        """Told of every change."""
        self._session_id = session_id
        self._control = control
        self._restarting = asyncio.Lock()
        self._exit_expected = False
        self._ticks = 0
        self._over: tuple[KernelChange, int | None] | None = ("died", None) if connection.is_dead else None
        # What a guest does writes the service's log.
        self._log_rate = Rate(1 / 60, 10)
        connection.on_misbehaved = self._misbehaved

    @property
    def is_dead(self) -> bool:
        """Whether it has died, and was not restarted since."""
        return self._over is not None

    @contextlib.contextmanager
    def watched(self, watcher: OnChange) -> Generator[None]:
        """Have one more told of changes until the block is left; at once when the kernel is dead by now."""
        self.watchers.append(watcher)
        try:
            if self._over is not None:
                watcher(*self._over)
            yield
        finally:
            self.watchers.remove(watcher)

    def execute(self, code: str, options: ExecutionOptions | None = None) -> Execution:
        """Run code: ``await`` it for the Result, or iterate over the outputs as they come.

        Awaiting raises KernelDied, ExecutionTimeout, GuestMisbehaved; an exception in the code is no error here but in
        the Result.
        """
        return Execution(self.connection, self, code, options or ExecutionOptions())

    async def info(self) -> dict[str, object]:
        """The kernel's answer to ``kernel_info_request``: versions, language, features."""
        request = self.connection.codec.request("kernel_info_request", {})
        # On the control channel, where it waits behind no code.
        return (await self.connection.ask("control", request, timeout=CALL_TIMEOUT)).content

    async def interrupt(self) -> None:
        """Interrupt the code that runs now, as Ctrl-C does. Raises GuestUnresponsive, GuestRefused, MachineDied."""
        await self._control.call("interrupt", timeout=CALL_TIMEOUT, context=self.context)

    async def is_ending(self) -> bool:
        """Whether it has worked, since it was last asked, in a call that an interrupt waits for, or after the code.

        Code of the user's that goes on does not count, and nothing does that the guest cannot tell.
        """
        try:
            answer = await self._control.call("progress", timeout=CALL_TIMEOUT, context=self.context)
        except (GuestRefused, GuestUnresponsive):
            return False
        ticks, before = integer(answer, "ticks"), self._ticks
        self._ticks = ticks
        return ticks > before and answer.get("stage") in {"calls", "ends"}

    async def restart(self) -> None:
        """Replace the kernel by a new one; its variables are gone, files stay.

        Raises GuestUnresponsive, GuestRefused, MachineDied; then there is no kernel, and it may be tried again.
        """
        # One at a time: of two exits one would be taken for a death, and restarted in turn.
        async with self._restarting:
            self._exit_expected = True
            self._tell("restarting")
            try:
                # That there is a new one is told by its event, which comes before the answer, or late without one.
                await self._control.call("restart", timeout=RESTART_TIMEOUT, context=self.context)
            except InterpreterError as error:
                self._exit_expected = False
                failed = KernelDied(f"the kernel could not be restarted: {error.message}", hint="Restart it again")
                self.connection.kernel_died(failed)
                self._tell("died")
                raise

    def on_event(self, event: AgentEvent) -> None:
        """The session hands over what the guest's agent told of this kernel."""
        if event.get("event") == "kernel_started":
            # Also when there was no kernel to end first.
            self._exit_expected = False
            self.connection.kernel_restarted()
            self._tell("restarted")
            return
        if event.get("event") != "kernel_exited":
            return
        if self._exit_expected:
            self._exit_expected = False
            return
        status = event.get("status")
        if self._log_rate.take():
            log.info("kernel died", session=self._session_id, context=self.context, status=status)
        cause = _cause(status, event.get("cause"))
        error = KernelDied(f"the kernel died ({cause})", hint="Restart it; files are kept")
        self.connection.kernel_died(error)
        self._tell("died", status if isinstance(status, int) else None)

    def end(self, error: InterpreterError) -> None:
        """The kernel is gone for good; all who wait for it get KernelDied: SessionEnded when its machine is."""
        self.connection.end(error if isinstance(error, KernelDied) else SessionEnded(error.message, hint=error.hint))
        self._tell("ended")

    def _misbehaved(self, error: GuestMisbehaved) -> None:
        if self._log_rate.take():
            log.warning("kernel misbehaved", session=self._session_id, context=self.context, error=error.message)
        self._tell("died")

    def _tell(self, change: KernelChange, status: int | None = None) -> None:
        self._over = (change, status) if change in {"died", "ended"} else None
        for watcher in list(self.watchers):
            watcher(change, status)


def _cause(status: object, cause: object) -> str:
    if cause == "memory":
        return "out of memory"
    if not isinstance(status, int):
        return "for an unknown reason"
    if status == -9:
        return "killed by signal 9"
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
