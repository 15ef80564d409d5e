"""Executions of the service: queued per context, followed by any number of readers, detached when asked for."""

import asyncio
import contextlib
import json
import uuid
from dataclasses import dataclass
from typing import Any, Final, Literal

from interpreter.clock import Clock
from interpreter.engine.kernel import Kernel
from interpreter.engine.session import Session
from interpreter.errors import Busy, Conflict, ExecutionTimeout, InterpreterError, KernelDied, NotFound
from interpreter.events import joined
from interpreter.kernel.channels import MAIN
from interpreter.kernel.execution import Execution
from interpreter.sessions.journal import Journal, forget_oldest
from interpreter.settings import Settings
from interpreter.store.records import ExecutionRecord
from interpreter.store.store import Store

_MAX_QUEUED: Final = 100
"""Executions that may wait in one session."""


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """Code and how to run it. ``timeout`` is in seconds."""

    code: str
    context: str = MAIN
    timeout: float | None = None
    store_history: bool = True
    silent: bool = False
    allow_stdin: bool = False
    detach: bool = False


class RunningExecution:
    """One execution, from the moment it was asked for. ``result`` is there when it has ended."""

    def __init__(self, request: ExecutionRequest, session_id: str, limit: int, now: float) -> None:
        self.id = uuid.uuid4().hex
        self.request = request
        self.session_id = session_id
        self.journal = Journal(limit)
        self.state: Literal["queued", "running", "done"] = "queued"
        self.created_at = now
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.result: dict[str, Any] | None = None
        self.input: asyncio.Future[str] | None = None
        self.done = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.running: Execution | None = None

    def record(self) -> ExecutionRecord:
        """For the database."""
        return ExecutionRecord(
            id=self.id,
            session_id=self.session_id,
            context=self.request.context,
            state=self.state,
            created_at=self.created_at,
            ended_at=self.ended_at,
            result=None if self.result is None else _json(self.result),
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
        self._store = store
        self._settings = settings
        self._clock = clock
        self._turns: dict[str, asyncio.Lock] = {}
        self._running: dict[str, RunningExecution] = {}
        self._ended: dict[str, RunningExecution] = {}

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
        if len(self._running) >= _MAX_QUEUED:
            raise Busy(f"{len(self._running)} executions wait in this session already", retry_after=1)
        execution = RunningExecution(request, self._session.id, self._settings.output_limit, self._clock.now())
        self._running[execution.id] = execution
        try:
            if request.detach:
                await self._store.save_execution(execution.record())
        except BaseException:
            del self._running[execution.id]
            raise
        execution.task = asyncio.create_task(self._run(execution, kernel))
        return execution

    def find(self, execution_id: str) -> RunningExecution | None:
        """An execution that runs, or that ended not long ago."""
        return self._running.get(execution_id) or self._ended.get(execution_id)

    def waiting_for_input(self, context: str) -> RunningExecution:
        """The execution of a context that asks for input. Raises Conflict."""
        for execution in self._running.values():
            if execution.request.context == context and execution.input is not None:
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
                    async with asyncio.timeout(self._settings.interrupt_grace):
                        await execution.running.begun.wait()
            with contextlib.suppress(InterpreterError):
                await self.kernel(execution.request.context).interrupt()
        elif execution.state == "queued" and execution.task is not None:
            execution.task.cancel()

    async def close(self, error: InterpreterError) -> None:
        """The session ends: whoever still waits is told, and what has detached is written down."""
        running = list(self._running.values())
        for execution in running:
            execution.journal.add({"type": "session_ended", "code": error.code, "message": str(error)})
            if execution.task is not None:
                execution.task.cancel()
        await asyncio.gather(*(one.task for one in running if one.task is not None), return_exceptions=True)

    async def _run(self, execution: RunningExecution, kernel: Kernel) -> None:
        result: dict[str, Any] = {"status": "cancelled"}
        try:
            async with self._turns.setdefault(execution.request.context, asyncio.Lock()):
                execution.state, execution.started_at = "running", self._clock.now()
                execution.journal.add({"type": "started", "execution_id": execution.id})
                result = await self._execute(execution, kernel)
        finally:
            # Also when it was cancelled: the session ends, or the client went away before its turn.
            await asyncio.shield(self._finish(execution, result))

    async def _execute(self, execution: RunningExecution, kernel: Kernel) -> dict[str, Any]:
        request, journal = execution.request, execution.journal
        running = execution.running = kernel.execute(
            request.code,
            silent=request.silent,
            store_history=request.store_history,
            # Requests are independent of each other: one that fails does not take those behind it along.
            stop_on_error=False,
            timeout=request.timeout,
            interrupt_grace=self._settings.interrupt_grace,
            on_input=execution.ask if request.allow_stdin else None,
            keep_outputs=False,
        )
        try:
            async for output in running:
                journal.add_output(output.model_dump())
            ended = await running.result()
            # Not iterated over: the error of a silent execution, which only its reply tells.
            for output in ended.outputs:
                journal.add_output(output.model_dump())
        except ExecutionTimeout as error:
            return {"status": "timeout", "kernel_restarted": error.kernel_restarted, "error": error.as_json()}
        except KernelDied as error:
            return {"status": "kernel_died", "error": error.as_json()}
        except InterpreterError as error:
            return {"status": "failed", "error": error.as_json()}
        return {"status": ended.status, "execution_count": ended.execution_count}

    async def _finish(self, execution: RunningExecution, result: dict[str, Any]) -> None:
        execution.state, execution.ended_at = "done", self._clock.now()
        outputs = joined(execution.journal.events)
        failed = next((output for output in reversed(outputs) if output["type"] == "error"), None)
        error = {key: failed[key] for key in ("ename", "evalue", "traceback")} if failed else None
        began = execution.started_at or execution.ended_at
        execution.result = {
            "execution_id": execution.id,
            "context_id": execution.request.context,
            "execution_count": None,
            "kernel_restarted": False,
            "error": error,
            **result,
            "truncated": execution.journal.truncated,
            "duration_seconds": round(execution.ended_at - began, 6),
            "outputs": outputs,
        }
        summary = {key: value for key, value in execution.result.items() if key != "outputs"}
        execution.journal.add({"type": "done", **summary})
        execution.journal.close()
        del self._running[execution.id]
        self._ended[execution.id] = execution
        forget_oldest(self._ended, self._settings.output_limit)
        if execution.request.detach:
            with contextlib.suppress(InterpreterError):
                await self._store.save_execution(execution.record())
        execution.done.set()


def _json(result: dict[str, Any]) -> bytes:
    # A text may hold half of a surrogate pair, which is no UTF-8.
    return json.dumps(result, ensure_ascii=False).encode("utf-8", "replace")
