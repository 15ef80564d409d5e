"""Routes of executions and contexts: run code, follow it, answer it, interrupt it."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from interpreter.api.answers import long_answer
from interpreter.api.contexts import CONTEXT_PATTERN, ContextName
from interpreter.api.events import MEDIA_TYPE, EventStream, journal_events, last_event, unless_gone, wants_events
from interpreter.api.http.bodies import long_body
from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.deadline import deadline
from interpreter.errors import InvalidRequest, NotFound
from interpreter.kernel.channels import MAIN
from interpreter.kernel.execution import ExecutionOptions
from interpreter.kernel.limits import parse_json
from interpreter.sessions.executions import ExecutionRequest, RunningExecution
from interpreter.sessions.live import LiveSession
from interpreter.sessions.outcome import ExecutionOutcome, Piece
from interpreter.store.paging import Page
from interpreter.store.records import ExecutionRecord

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["executions"])

_RESULT: JsonDict = {
    "execution_id": "0d6e…",
    "context_id": "main",
    "status": "ok",
    "execution_count": 1,
    "outputs": [{"type": "execute_result", "execution_count": 1, "data": {"text/plain": "2"}, "metadata": {}}],
    "error": None,
    "kernel_restarted": False,
    "truncated": False,
    "duration_seconds": 0.004,
}


class ExecuteBody(BaseModel):
    """Code to run."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"code": "1 + 1"}})

    code: str = Field(max_length=8_000_000)
    language: Literal["python"] = "python"
    context_id: str = Field(default=MAIN, pattern=CONTEXT_PATTERN, description="Which kernel runs it.")
    timeout: float | None = Field(
        default=None,
        gt=0,
        le=28_800,
        description="Seconds. Past it the code is interrupted, and when that does not help its kernel is restarted.",
    )
    store_history: bool = True
    silent: bool = False
    allow_stdin: bool = Field(default=False, description="Whether input() asks, by an event, or raises.")
    detach: bool = Field(default=False, description="Answer at once, and run on whether or not anybody waits.")

    def request(self) -> ExecutionRequest:
        """As sessions take it."""
        options = ExecutionOptions(timeout=self.timeout, store_history=self.store_history, silent=self.silent)
        return ExecutionRequest(self.code, self.context_id, options, allow_stdin=self.allow_stdin, detach=self.detach)


class ExecutionResult(ExecutionOutcome):
    """How an execution ended and what it gave. ``outputs`` are Jupyter's, with their whole mime bundles."""

    model_config = ConfigDict(json_schema_extra={"example": _RESULT})

    outputs: list[dict[str, Any]]


class ExecutionView(BaseModel):
    """An execution, with its result once it has ended."""

    execution_id: str
    context_id: str
    state: Literal["queued", "running", "done"]
    created_at: float = Field(description="Seconds since 1970.")
    ended_at: float | None = None
    result: ExecutionResult | None = None


class ExecutionList(BaseModel):
    """A page of executions, newest first, without their results. ``next`` is the cursor of the page after this one."""

    executions: list[ExecutionView]
    next: str | None = None


class InputBody(BaseModel):
    """The answer to the code's ``input()``."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"value": "yes"}})

    value: str = Field(max_length=1_000_000)
    context_id: str = MAIN


class ContextBody(BaseModel):
    """A context by its name."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"context_id": "second"}})

    context_id: str = Field(default=MAIN, pattern=CONTEXT_PATTERN)


class ContextList(BaseModel):
    """A session's kernels."""

    contexts: list[ContextBody]


_SCHEMA: Final = ExecuteBody.model_json_schema()


async def _body(request: Request) -> ExecuteBody:
    data = await long_body(request)
    try:
        return ExecuteBody.model_validate(parse_json(data))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not JSON: {str(error)[:200]}") from None


@router.post(
    "/execute",
    summary="Run code",
    response_model=ExecutionResult,
    responses={
        **problems(404, 409, 429, 503),
        200: {
            "description": "It ended, well or not; or, as server-sent events, what comes.",
            "content": {MEDIA_TYPE: {}},
        },
        202: {"model": ExecutionView, "description": "Detached: it runs on by itself."},
    },
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}},
)
async def execute(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    body: Annotated[ExecuteBody, Depends(_body)],
    request: Request,
) -> Any:
    """Run code in a kernel of the session, behind what was sent there before.

    With `Accept: text/event-stream` each output is an event as it comes (`started`, `stream`, `display_data`,
    `execute_result`, `error`, `input_request`, `truncated`, and at the end `done`); else one JSON answer at the end.
    When the client goes away before the end the code is interrupted, unless it was detached.
    """
    service.sessions.check_accepting()
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use():
        execution = await live.executions.start(body.request())
    if wants_events(request):
        return EventStream(journal_events(execution.journal), at_end=lambda: _leave(live, execution))
    if body.detach:
        return _view(execution, 202)
    if await unless_gone(request, execution.done.wait()) is None:
        await live.executions.abandon(execution)
    return long_answer(execution.answer, held=execution.journal.reading())


@router.get("/executions", summary="List executions", responses=problems(404))
async def list_executions(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> ExecutionList:
    """Those that wait or run, and the detached ones, newest first, without their results."""
    await service.sessions.find(caller.tenant, session_id)
    live = service.sessions.live_session(session_id)
    running = [execution.record() for execution in live.executions.all()] if live else []
    records, cursor = await service.store.list_executions(session_id, Page(limit, after), running)
    return ExecutionList(executions=[_view_of(record) for record in records], next=cursor)


@router.get(
    "/executions/{execution_id}",
    summary="Look at or wait for an execution",
    response_model=ExecutionView,
    responses=problems(404),
)
async def look(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    execution_id: str,
    wait: Annotated[float, Query(ge=0, le=300, description="Seconds to wait for its end.")] = 0,
) -> Any:
    """An execution with its result, when it has one within `wait` seconds. Detached ones are kept for some days."""
    await service.sessions.find(caller.tenant, session_id)
    live = service.sessions.live_session(session_id)
    execution = live.executions.find(execution_id) if live else None
    if execution is not None:
        with contextlib.suppress(TimeoutError):
            async with deadline(wait):
                await execution.done.wait()
        return _view(execution)
    record = await service.store.find_execution(session_id, execution_id)
    if record is None:
        raise NotFound(f"there is no execution {execution_id[:64]!r} in this session")
    # The result is JSON, of megabytes at times, and is handed on as it is.
    return long_answer(lambda: _with_result(record, [record.result or b"null"]))


@router.get(
    "/executions/{execution_id}/events",
    summary="Follow an execution",
    response_class=EventStream,
    responses={**problems(404, 409), 200: {"content": {MEDIA_TYPE: {}}, "description": "Events from the first on."}},
)
async def follow(
    caller: CallerOf, service: ServiceOf, session_id: str, execution_id: str, request: Request
) -> EventStream:
    """Its events from the first on, or after `Last-Event-ID`. Leaving does not interrupt it."""
    live = await service.sessions.running(caller.tenant, session_id)
    execution = live.executions.find(execution_id)
    if execution is None:
        raise NotFound(f"there is no execution {execution_id[:64]!r} in this session any more")
    return EventStream(journal_events(execution.journal, last_event(request)))


@router.post("/stdin", status_code=204, summary="Answer input()", responses=problems(404, 409))
async def stdin(caller: CallerOf, service: ServiceOf, session_id: str, body: InputBody) -> None:
    """Answer the code that waits in `input()`; it must have been run with `allow_stdin`."""
    live = await service.sessions.running(caller.tenant, session_id)
    live.executions.waiting_for_input(body.context_id).answer_input(body.value)


@router.post("/interrupt", status_code=204, summary="Interrupt", responses=problems(404, 409, 504))
async def interrupt(caller: CallerOf, service: ServiceOf, session_id: str, body: ContextBody | None = None) -> None:
    """Interrupt what runs in a context, as Ctrl-C does; variables stay."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use():
        await live.executions.kernel(body.context_id if body else MAIN).interrupt()


@router.post("/restart", status_code=204, summary="Restart a kernel", responses=problems(404, 409, 504))
async def restart(caller: CallerOf, service: ServiceOf, session_id: str, body: ContextBody | None = None) -> None:
    """Replace a context's kernel by a new one: variables are gone, files stay."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use():
        await live.executions.kernel(body.context_id if body else MAIN).restart()


@router.get("/contexts", summary="List contexts", responses=problems(404, 409))
async def contexts(caller: CallerOf, service: ServiceOf, session_id: str) -> ContextList:
    """The session's kernels; `main` is there from the start."""
    live = await service.sessions.running(caller.tenant, session_id)
    return ContextList(contexts=[ContextBody(context_id=name) for name in live.session.kernels])


@router.post("/contexts", status_code=201, summary="Open a context", responses=problems(404, 409, 504))
async def open_context(caller: CallerOf, service: ServiceOf, session_id: str, body: ContextBody) -> ContextBody:
    """Start one more kernel: variables of its own, the same files."""
    live = await service.sessions.running(caller.tenant, session_id)
    await service.sessions.open_context(live, body.context_id)
    return body


@router.delete("/contexts/{context_id}", status_code=204, summary="Close a context", responses=problems(404, 409))
async def close_context(caller: CallerOf, service: ServiceOf, session_id: str, context_id: ContextName) -> None:
    """End one kernel with all that it holds."""
    live = await service.sessions.running(caller.tenant, session_id)
    await service.sessions.close_context(live, context_id)


async def _leave(live: LiveSession, execution: RunningExecution) -> None:
    if not execution.detach and not execution.done.is_set():
        await live.executions.abandon(execution)


def _view(execution: RunningExecution, status: int = 200) -> Response:
    record = execution.record()
    return long_answer(lambda: _with_result(record, execution.answer()), status, held=execution.journal.reading())


def _with_result(record: ExecutionRecord, result: Iterable[Piece]) -> Iterator[Piece]:
    yield _view_of(record).model_dump_json(exclude={"result"}).encode()[:-1] + b',"result":'
    yield from result
    yield b"}"


def _view_of(record: ExecutionRecord) -> ExecutionView:
    """Without its result."""
    return ExecutionView(
        execution_id=record.id,
        context_id=record.context,
        state=record.state,
        created_at=record.created_at,
        ended_at=record.ended_at,
    )
