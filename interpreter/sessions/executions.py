"""Executions of the service: queued per context, followed by any number of readers, detached when asked for."""

import asyncio
import contextlib
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Literal

from interpreter.clock import Clock
from interpreter.deadline import deadline
from interpreter.engine.kernel import Kernel
from interpreter.engine.session import Session
from interpreter.errors import (
    Busy,
    Conflict,
    ExecutionTimeout,
    InterpreterError,
    KernelDied,
    NotFound,
    SessionEnded,
)
from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.channels import MAIN
from interpreter.kernel.execution import Execution, ExecutionOptions
from interpreter.kernel.limits import parse_json
from interpreter.kernel.message import Message
from interpreter.kernel.outputs import output_of
from interpreter.sessions.journal import KEPT, Journal, forget_oldest
from interpreter.sessions.outcome import ExecutionOutcome, Piece
from interpreter.settings import Settings
from interpreter.store.records import ExecutionRecord
from interpreter.store.store import Store

CAUSE_SECONDS: Final = 5.0
"""How long what runs in a machine that has ended waits to be told why."""
_LATE_BYTES: Final = 1_000_000
"""So much is kept of what a context's code puts out between executions."""
_LATE_CUT: Final = f"[Output of earlier code past {_LATE_BYTES} bytes was left out.]\n"
_MAX_QUEUED: Final = 100
"""Executions that may wait in one session."""


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """Code and how to run it. Without ``keep`` nothing of it stays when it has ended."""

    code: str = field(repr=False)
    context: str = MAIN
    options: ExecutionOptions = field(default_factory=ExecutionOptions)
    allow_stdin: bool = False
    detach: bool = False
    keep: bool = True


class RunningExecution:
    """One execution, from the moment it was asked for. ``outcome`` is there when it has ended."""

    def __init__(self, request: ExecutionRequest, session_id: str, journal: Journal, now: float) -> None:
        self.id = uuid.uuid4().hex
        self.context = request.context
        self.takes_late = request.keep and not request.options.silent
        """Whether it is told what earlier code of its context has put out since that ended."""
        self.detach = request.detach
        self.session_id = session_id
        self.journal = journal
        self.state: Literal["queued", "running", "done"] = "queued"
        self.created_at = now
        self.began: float | None = None
        """When it started to run, in seconds as they pass."""
        self.ended_at: float | None = None
        self.outcome: ExecutionOutcome | None = None
        self.input: asyncio.Future[str] | None = None
        self.done = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.running: Execution | None = None
        self.code_size = 0
        """Bytes of its code, until it has run."""

    def answer(self) -> Iterator[Piece]:
        """How it ended and what it gave, as a JSON object in pieces; null as long as it runs."""
        return iter([b"null"]) if self.outcome is None else self.outcome.members({"outputs": self.journal.outputs()})

    def record(self) -> ExecutionRecord:
        """For lists and the database, without what it gave."""
        return ExecutionRecord(
            id=self.id,
            session_id=self.session_id,
            context=self.context,
            state=self.state,
            created_at=self.created_at,
            ended_at=self.ended_at,
        )

    def answer_input(self, value: str) -> None:
        """Answer the code's ``input()``. Raises Conflict when it does not ask."""
        if self.input is None or self.input.done():
            raise Conflict("this execution does not wait for input")
        self.input.set_result(value)

    async def ask(self, prompt: str, password: bool) -> str:
        """Have a reader answer; told by an event of type ``input_request``."""
        self.input = asyncio.get_running_loop().create_future()
        self.journal.add({"type": "input_request", "prompt": prompt, "password": password})
        try:
            return await self.input
        finally:
            self.input = None


class Executions:
    """All executions of one session."""

    def __init__(self, session: Session, store: Store, settings: Settings, clock: Clock) -> None:
        self._session = session
        self._room = session.memory.kept
        self._room.forget.append(lambda: forget_oldest(self._ended))
        self._store = store
        self._settings = settings
        self._clock = clock
        self._turns: dict[str, asyncio.Lock] = {}
        self._late: dict[str, Journal] = {}
        self._running: dict[str, RunningExecution] = {}
        self._ended: dict[str, RunningExecution] = {}
        self._over: InterpreterError | None = None
        self._closed = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self._running)

    def kernel(self, context: str) -> Kernel:
        """A context's kernel. Raises NotFound."""
        kernel = self._session.kernels.get(context)
        if kernel is None:
            raise NotFound(f"the session has no context {context!r}", hint="List its contexts")
        return kernel

    async def start(self, request: ExecutionRequest) -> RunningExecution:
        """Queue an execution behind those of its context. Raises NotFound, Busy."""
        kernel = self.kernel(request.context)
        kernel.connection.on_late = partial(self._take_late, request.context)
        if len(self._running) >= _MAX_QUEUED:
            raise Busy(f"{len(self._running)} executions wait in this session already", retry_after=1)
        # What it really takes: text with one rare character in it takes four bytes for each.
        size = sys.getsizeof(request.code)
        if not self._room.fits(size):
            raise no_room()
        journal = Journal(self._settings.output_limit, self._room)
        execution = RunningExecution(request, self._session.id, journal, self._clock.now())
        self._running[execution.id] = execution
        self._room.take(size)
        execution.code_size = size
        try:
            if request.detach:
                await self._store.save_execution(execution.record())
        except BaseException:
            del self._running[execution.id]
            self._let_go(execution)
            raise
        execution.task = asyncio.create_task(self._run(execution, kernel, request))
        # Also when it was cancelled before its first step.
        execution.task.add_done_callback(lambda _: self._let_go(execution))
        return execution

    def find(self, execution_id: str) -> RunningExecution | None:
        """An execution that runs, or that ended not long ago."""
        return self._running.get(execution_id) or self._ended.get(execution_id)

    def waiting_for_input(self, context: str) -> RunningExecution:
        """The execution of a context that asks for input. Raises Conflict."""
        for execution in self._running.values():
            if execution.context == context and execution.input is not None:
                return execution
        raise Conflict("no execution waits for input")

    def all(self) -> list[RunningExecution]:
        """Those that run or wait, oldest first."""
        return list(self._running.values())

    async def abandon(self, execution: RunningExecution) -> None:
        """Nobody wants it any more: interrupt it when it runs, forget it when it waits."""
        if execution.state == "running":
            if execution.running is not None:
                with contextlib.suppress(TimeoutError):
                    async with deadline(self._settings.interrupt_grace):
                        await execution.running.begun.wait()
            with contextlib.suppress(InterpreterError):
                await self.kernel(execution.context).interrupt()
        elif execution.state == "queued" and execution.task is not None:
            execution.task.cancel()

    def forget_context(self, context: str) -> None:
        """A context is closed: what its code has put out late is of no use any more."""
        if late := self._late.pop(context, None):
            late.forget()

    async def close(self, error: InterpreterError) -> None:
        """The session ends: whoever still waits is told, and what has detached is written down."""
        self._over = error
        self._closed.set()
        running = list(self._running.values())
        for execution in running:
            execution.journal.add({"type": "session_ended", **error.as_json()})
            if execution.task is not None:
                execution.task.cancel()
        await asyncio.gather(*(one.task for one in running if one.task is not None), return_exceptions=True)
        for context in list(self._late):
            self.forget_context(context)

    async def _run(self, execution: RunningExecution, kernel: Kernel, request: ExecutionRequest) -> None:
        ended = ExecutionOutcome(status="cancelled")
        try:
            async with self._turns.setdefault(execution.context, asyncio.Lock()):
                execution.state, execution.began = "running", self._clock.elapsed()
                execution.journal.add({"type": "started", "execution_id": execution.id})
                self._tell_late(execution)
                ended = await self._execute(execution, kernel, request)
        finally:
            # Also when it was cancelled: the session ends, or the client went away before its turn.
            await asyncio.shield(self._finish(execution, ended, keep=request.keep))

    def _take_late(self, context: str, message: Message) -> None:
        """Output of code that has ended, by a thread for example: for what runs now, or else for what is next."""
        running = (one for one in self._running.values() if one.context == context and one.state == "running")
        execution = next(running, None)
        if execution is not None and execution.takes_late:
            journal = execution.journal
        else:
            limit = min(self._settings.output_limit, _LATE_BYTES)
            journal = self._late.setdefault(context, Journal(limit, self._room))
        journal.add_output(output_of(message).model_dump())

    def _tell_late(self, execution: RunningExecution) -> None:
        if not execution.takes_late or (late := self._late.pop(execution.context, None)) is None:
            return
        late.close()
        for entry in late.entries:
            if entry.type in OUTPUT_TYPES:
                execution.journal.add_output(parse_json(entry.json))
        if late.truncated:
            execution.journal.add_output({"type": "stream", "name": "stderr", "text": _LATE_CUT})
        late.forget()

    async def _execute(
        self, execution: RunningExecution, kernel: Kernel, request: ExecutionRequest
    ) -> ExecutionOutcome:
        journal = execution.journal
        options = replace(
            request.options,
            # Requests are independent of each other: one that fails does not take those behind it along.
            stop_on_error=False,
            interrupt_grace=self._settings.interrupt_grace,
            on_input=execution.ask if request.allow_stdin else None,
            keep_outputs=False,
        )
        running = execution.running = kernel.execute(request.code, options)
        try:
            async for output in running:
                journal.add_output(output.model_dump())
            ended = await running.result()
            # Not iterated over: the error of a silent execution, which only its reply tells.
            for output in ended.outputs:
                journal.add_output(output.model_dump())
        except ExecutionTimeout as error:
            return ExecutionOutcome(status="timeout", kernel_restarted=error.kernel_restarted, error=error.as_json())
        except SessionEnded as error:
            # Why is known in a moment, to whoever ends the session and this with it.
            with contextlib.suppress(TimeoutError):
                async with deadline(CAUSE_SECONDS):
                    await self._closed.wait()
            return ExecutionOutcome(status="cancelled", error=error.as_json())
        except KernelDied as error:
            return ExecutionOutcome(status="kernel_died", error=error.as_json())
        except InterpreterError as error:
            return ExecutionOutcome(status="failed", error=error.as_json())
        return ExecutionOutcome(status=ended.status, execution_count=ended.execution_count)

    async def _finish(self, execution: RunningExecution, ended: ExecutionOutcome, *, keep: bool) -> None:
        execution.state, execution.ended_at = "done", self._clock.now()
        elapsed, journal = self._clock.elapsed(), execution.journal
        if ended.status == "cancelled" and self._over is not None:
            ended = ended.model_copy(update={"error": self._over.as_json()})
        raised = {key: journal.error[key] for key in ("ename", "evalue", "traceback")} if journal.error else None
        execution.outcome = ended.model_copy(
            update={
                "execution_id": execution.id,
                "context_id": execution.context,
                "error": ended.error or raised,
                "truncated": journal.truncated or (execution.running is not None and execution.running.has_left_out),
                "duration_seconds": 0.0 if execution.began is None else round(elapsed - execution.began, 6),
            }
        )
        journal.add(execution.outcome.event())
        journal.close()
        del self._running[execution.id]
        if keep:
            self._ended[execution.id] = execution
            while len(self._ended) > KEPT:
                forget_oldest(self._ended)
        else:
            journal.forget()
        self._let_go(execution)
        if execution.detach:
            with contextlib.suppress(InterpreterError):
                await self._store.save_execution(replace(execution.record(), result=b"".join(execution.answer())))
        execution.done.set()

    def _let_go(self, execution: RunningExecution) -> None:
        self._room.give_back(execution.code_size)
        execution.code_size = 0


def no_room() -> Busy:
    """What somebody gets whose code or notebook does not fit beside what the session keeps."""
    hint = "Wait until what runs has ended; long code runs from a file"
    return Busy("what runs in this session takes all the memory that it may", hint=hint, retry_after=1)
