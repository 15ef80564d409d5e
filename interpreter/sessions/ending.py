"""How a session ends: step by step, each of which is tried whatever became of those before it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from interpreter.accounting.ledger import Ledger
from interpreter.clock import Clock
from interpreter.deadline import deadline
from interpreter.errors import SessionEnded, SessionExpired
from interpreter.sessions.admission import Admission
from interpreter.sessions.live import End, LiveSession
from interpreter.sessions.supervised import cause_of, is_cancelled
from interpreter.sessions.unwritten import Unwritten
from interpreter.store.records import Reason, SessionRecord, State, TimeoutMode

log = structlog.get_logger(__name__)

_STEP_SECONDS: Final = 30.0
"""What each step may take: far more than it ever does. One that hangs must not keep the machine."""


class Ender:
    """Ends sessions."""

    def __init__(self, admission: Admission, unwritten: Unwritten, ledger: Ledger, clock: Clock) -> None:
        self._admission = admission
        self._unwritten = unwritten
        self._ledger = ledger
        self._clock = clock

    async def end(self, live: LiveSession, end: End) -> None:
        """End a session: those who use it are told, its machine ends, its place is free, and all that is written."""
        error = session_ended(live.record, end)
        steps: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("note", lambda: live.change(state=State.STOPPING, reason=end.reason, message=end.message)),
            ("clients", lambda: live.clients.close(farewell(live.record, end))),
            ("executions", lambda: live.executions.close(error)),
            ("commands", lambda: live.commands.close(error)),
            ("account", lambda: self._ledger.close_account(live.record.id)),
            ("machine", live.held.stack.aclose),
        )
        for name, step in steps:
            await self._step(live.record.id, name, step)
        self._admission.give_back(live.ticket)
        live.record = live.record.model_copy(update={"state": end.state, "stopped_at": self._clock.now()})
        await self._unwritten.save(live.record)
        log.info("session ended", session=live.record.id, state=end.state, reason=end.reason)

    async def _step(self, session_id: str, name: str, step: Callable[[], Awaitable[None]]) -> None:
        try:
            async with deadline(_STEP_SECONDS):
                await step()
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            self._tell(session_id, name, error)
        except Exception as error:
            self._tell(session_id, name, error)

    def _tell(self, session_id: str, name: str, error: BaseException) -> None:
        log.warning("a step of a session's end failed", session=session_id, step=name, error=cause_of(error))


def session_ended(record: SessionRecord, end: End) -> SessionEnded:
    """Why a session ends, for whoever waits for what runs in it."""
    hint = "Start another one; variables and files are gone"
    match end.reason:
        case Reason.TIMEOUT:
            counted = "without use" if record.timeout_mode is TimeoutMode.IDLE else "from its start"
            return SessionExpired(
                f"the session's time was up: {record.timeout_seconds} s {counted}",
                hint="Start another one with a larger timeout_seconds, or extend one while it runs",
            )
        case Reason.USER:
            return SessionEnded("the session was stopped", hint=hint)
        case Reason.SHUTDOWN:
            return SessionEnded("the service is being stopped", hint=hint)
        case reason:
            why = f": {end.message}" if end.message else ""
            return SessionEnded(f"the session ended ({reason}){why}", hint=hint)


def farewell(record: SessionRecord, end: End) -> str:
    """Why a session ends, for those who are connected to its kernel. At most 100 characters."""
    match end.reason:
        case Reason.TIMEOUT if record.timeout_mode is TimeoutMode.IDLE:
            return f"culled: the kernel was not used for {record.timeout_seconds} s"
        case Reason.TIMEOUT:
            return f"the session's {record.timeout_seconds} s were over"
        case Reason.USER:
            return "the kernel was shut down"
        case Reason.SHUTDOWN:
            return "the service is being stopped"
        case _:
            return (end.message or "the session ended")[:100]
