"""Notebooks that run in a session: cell by cell, followed by readers, given back with their outputs.

What papermill does, with its metadata: https://papermill.readthedocs.io.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from interpreter.clock import Clock
from interpreter.errors import InterpreterError, InvalidRequest, TooLarge
from interpreter.kernel.channels import MAIN
from interpreter.kernel.execution import ExecutionOptions
from interpreter.kernel.memory import size_of
from interpreter.kernel.outputs import is_exit
from interpreter.kernel.paths import check_path
from interpreter.notebooks.apart import without_outputs
from interpreter.notebooks.cells import ends_well, is_run, may_raise, notebook_to_run
from interpreter.notebooks.format import Notebook, as_file, as_members, fill_metadata, parse_notebook
from interpreter.notebooks.outputs import NotebookOutputs
from interpreter.notebooks.parameters import inject_parameters
from interpreter.sessions.executions import ExecutionRequest, RunningExecution, no_room
from interpreter.sessions.journal import Journal
from interpreter.sessions.live import LiveSession
from interpreter.sessions.outcome import NotebookOutcome
from interpreter.sessions.service import Sessions
from interpreter.store.records import NewSession

Status = Literal["ok", "error", "timeout", "kernel_died", "failed"]


@dataclass(frozen=True, slots=True)
class NotebookRequest:
    """A notebook, or the path of one in the session, and how to run it. ``timeout`` is in seconds, for each cell.

    Without ``session_id`` a session is made from ``new`` and stopped at the end. In a given session the notebook runs
    in a context that is opened for it, unless ``context`` names another one.
    """

    new: NewSession
    notebook: dict[str, Any] | None = None
    path: str | None = None
    session_id: str | None = None
    context: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    timeout: float | None = None
    allow_errors: bool = False
    output_path: str | None = None
    followed: bool = False
    """Whether anybody reads its outputs as events."""


@dataclass(frozen=True, slots=True)
class _Ending:
    status: Status = "ok"
    error: dict[str, Any] | None = None
    failed_cell: int | None = None


class RunningNotebook:
    """One notebook that runs, from its first cell on. Made by `start_notebook`; to be closed."""

    def __init__(
        self,
        live: LiveSession,
        context: str,
        notebook: Notebook,
        size: int,
        request: NotebookRequest,
        output_limit: int,
        opened: AsyncExitStack,
        clock: Clock,
    ) -> None:
        self._room = live.session.memory.kept
        self.journal = Journal(output_limit, self._room)
        """Events of cells and their outputs, as they come; ``answer`` is not among them."""
        self.answer: list[bytes] = []
        """Members of a JSON object that tells how it ended, with the executed notebook; there when `wait` returns."""
        self._live = live
        self._context = context
        self._notebook = notebook
        self._request = request
        self._outputs = NotebookOutputs(output_limit, self._room)
        self._held = size
        self._room.take(size)
        self._opened = opened
        self._clock = clock
        self._closing: asyncio.Task[None] | None = None
        self._task = asyncio.create_task(self._run())

    async def wait(self) -> None:
        """Return when it has ended and all that was opened for it is closed."""
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Interrupt it when it still runs, and close what was opened for it."""
        self._task.cancel()
        await asyncio.wait({self._task})
        self.journal.forget()
        self._outputs.close()
        self._room.give_back(self._held)
        self._held = 0
        # Also when it was cancelled before its first step.
        await self._release()

    async def _run(self) -> None:
        try:
            began = self._clock.elapsed()
            metadata = self._begin(self._clock.now())
            self.journal.add({"type": "started", "cells": len(self._notebook["cells"])})
            ending = await self._run_cells(metadata)
            metadata |= self._ended(began)
            language = await self._language() if ending.status in {"ok", "error"} else None
            await asyncio.to_thread(self._finish, language)
            if self._request.output_path is not None:
                ending = await self._write(self._request.output_path, ending)
            outcome = NotebookOutcome(
                status=ending.status,
                session_id=self._live.record.id,
                error=ending.error,
                failed_cell=ending.failed_cell,
                truncated=self._outputs.truncated,
                duration_seconds=metadata["duration"],
            )
            head = outcome.model_dump()
            self.answer = await asyncio.to_thread(lambda: list(as_members(head, self._notebook)))
            answered = sum(map(len, self.answer))
            self._room.take(answered)
            self._held += answered
        finally:
            try:
                await self._release()
            finally:
                self.journal.close()

    def _begin(self, now: float) -> dict[str, Any]:
        metadata: dict[str, Any] = {
            "default_parameters": {},
            "environment_variables": {},
            "input_path": self._request.path,
            "output_path": self._request.output_path,
            "parameters": dict(self._request.parameters),
            "start_time": _time(now),
            "end_time": None,
            "duration": None,
            "exception": None,
        }
        self._notebook["metadata"]["papermill"] = metadata
        for cell in self._notebook["cells"]:
            times = {"start_time": None, "end_time": None, "duration": None}
            cell["metadata"]["papermill"] = {"exception": None, **times, "status": "pending"}
        return metadata

    async def _run_cells(self, metadata: dict[str, Any]) -> _Ending:
        for index, cell in enumerate(self._notebook["cells"]):
            began = self._clock.elapsed()
            about: dict[str, Any] = cell["metadata"]["papermill"]
            about |= {"start_time": _time(self._clock.now()), "exception": False, "status": "running"}
            self.journal.add({"type": "cell_started", "index": index, "id": cell["id"], "cell_type": cell["cell_type"]})
            result = await self._run_cell(index, cell) if is_run(cell) else {"status": "skipped"}
            cell["execution_count"] = result.get("execution_count")
            if cell["cell_type"] != "code":
                del cell["execution_count"]
            ended = self._ended(began)
            ending = self._judged(index, cell, result)
            failed = ending is not None
            about |= {**ended, "exception": failed}
            about["status"] = "failed" if failed else "completed"
            self.journal.add(
                {
                    "type": "cell_done",
                    "index": index,
                    "status": result["status"],
                    "execution_count": result.get("execution_count"),
                    "duration_seconds": about["duration"],
                }
            )
            if ending is not None:
                metadata["exception"] = True
                return ending
        return _Ending()

    def _ended(self, began: float) -> dict[str, Any]:
        return {"end_time": _time(self._clock.now()), "duration": round(self._clock.elapsed() - began, 6)}

    async def _run_cell(self, index: int, cell: dict[str, Any]) -> dict[str, Any]:
        try:
            self._live.check()
            options = ExecutionOptions(timeout=self._request.timeout)
            request = ExecutionRequest(cell["source"], self._context, options, keep=False)
            execution = await self._live.executions.start(request)
        except InterpreterError as error:
            return {"status": "failed", "error": error.as_json()}
        try:
            await self._follow(index, execution)
        finally:
            if not execution.done.is_set():
                await asyncio.shield(self._live.executions.abandon(execution))
        # It is there when its journal has ended.
        return execution.outcome.model_dump() if execution.outcome else {"status": "failed"}

    async def _follow(self, index: int, execution: RunningExecution) -> None:
        async for _, event in execution.journal.follow():
            match event.type:
                case "started" | "done" | "session_ended":
                    pass
                case _:
                    shown = self._outputs.add(index, event)
                    if shown is not None and self._request.followed:
                        self.journal.pass_on(shown, index=index)

    def _judged(self, index: int, cell: dict[str, Any], result: dict[str, Any]) -> _Ending | None:
        """How the notebook ends with this cell; None when it goes on."""
        error = result.get("error")
        match result["status"]:
            case "ok" if is_exit(cell["source"]):
                return _Ending()
            case "ok" | "skipped":
                return None
            case "error":
                if self._request.allow_errors or may_raise(cell):
                    return None
                if ends_well(error):
                    return _Ending()
                return _Ending("error", error, index)
            case "timeout" | "kernel_died" as status:
                return _Ending(status, error, index)
            case status:
                lost = {"code": "kernel", "message": f"the cell's execution was {status}", "hint": None}
                return _Ending("failed", error or lost, index)

    async def _language(self) -> object:
        with contextlib.suppress(InterpreterError):
            return (await self._live.executions.kernel(self._context).info()).get("language_info")
        return None

    def _finish(self, language_info: object) -> None:
        for index, outputs in self._outputs.finish().items():
            self._notebook["cells"][index]["outputs"] = outputs
        fill_metadata(self._notebook, language_info)

    async def _write(self, path: str, ending: _Ending) -> _Ending:
        try:
            content = await asyncio.to_thread(as_file, self._notebook)
            await self._live.session.files.upload(content, path)
        except InterpreterError as error:
            return ending if ending.error else _Ending("failed", error.as_json())
        return ending

    async def _release(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._opened.aclose())
        await asyncio.shield(self._closing)


async def start_notebook(sessions: Sessions, tenant: str, request: NotebookRequest) -> RunningNotebook:
    """Make all ready for a notebook and begin to run it.

    Raises InvalidRequest, NotFound, Conflict, Busy, TransferError, and what starting a session raises.
    """
    sessions.check_accepting()
    if request.output_path is not None:
        check_path(request.output_path)
    limit = sessions.settings.upload_limit
    notebook = None if request.notebook is None else await asyncio.to_thread(_prepared, request.notebook, request)
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(_session(sessions, tenant, request))
        stack.enter_context(live.use())
        if notebook is None:
            notebook = await _read(live, request.path or "", request, limit)
        size = await asyncio.to_thread(size_of, notebook)
        if not live.session.memory.kept.fits(size):
            raise no_room()
        context = await stack.enter_async_context(_context(sessions, live, request))
        return RunningNotebook(live, context, notebook, size, request, limit, stack.pop_all(), sessions.clock)


def _prepared(value: object, request: NotebookRequest) -> Notebook:
    notebook = notebook_to_run(value)
    inject_parameters(notebook, request.parameters)
    return notebook


@asynccontextmanager
async def _session(sessions: Sessions, tenant: str, request: NotebookRequest) -> AsyncGenerator[LiveSession]:
    if request.session_id is not None:
        yield await sessions.running(tenant, request.session_id)
        return
    record = await sessions.create(tenant, request.new)
    try:
        yield await sessions.running(tenant, record.id)
    finally:
        await sessions.stop(tenant, record.id)


@asynccontextmanager
async def _context(sessions: Sessions, live: LiveSession, request: NotebookRequest) -> AsyncGenerator[str]:
    if request.session_id is None or request.context is not None:
        context = request.context or MAIN
        live.executions.kernel(context)
        yield context
        return
    # A clean kernel, as a notebook expects; the session's files are the same.
    context = f"notebook-{secrets.token_hex(4)}"
    await sessions.open_context(live, context)
    try:
        yield context
    finally:
        # Nothing to close when the session has ended meanwhile.
        with contextlib.suppress(InterpreterError):
            await sessions.close_context(live, context)


async def _read(live: LiveSession, path: str, request: NotebookRequest, limit: int) -> Notebook:
    room = live.session.memory.kept
    async with AsyncExitStack() as held:
        async with live.session.files.open_download(path) as file:
            if file.size > limit:
                raise TooLarge(f"{path} has {file.size} bytes; a notebook may have {limit}")
            if not room.fits(file.size):
                raise no_room()
            room.take(file.size)
            held.callback(room.give_back, file.size)
            data = b"".join([piece async for piece in file.pieces])
        if not data:
            raise InvalidRequest(f"{path} is empty, not a notebook")
        data = await without_outputs(data, path)
        return await asyncio.to_thread(lambda: _prepared(parse_notebook(data, path), request))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
