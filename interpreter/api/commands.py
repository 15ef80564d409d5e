"""Routes of shell commands."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from interpreter.api.answers import long_answer
from interpreter.api.events import MEDIA_TYPE, EventStream, journal_events, last_event, unless_gone, wants_events
from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.deadline import deadline
from interpreter.sessions.commands import CommandRequest, RunningCommand
from interpreter.sessions.live import LiveSession
from interpreter.sessions.outcome import CommandOutcome, Piece
from interpreter.store.records import Variables

router = APIRouter(prefix="/v1/sessions/{session_id}/commands", tags=["commands"])

_RESULT: JsonDict = {
    "command_id": "3b9d…",
    "status": "ok",
    "exit_code": 0,
    "stdout": "data.csv\n",
    "stderr": "",
    "error": None,
    "truncated": False,
    "duration_seconds": 0.02,
}


class CommandBody(BaseModel):
    """A shell command."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"command": "ls -l"}})

    command: str = Field(min_length=1, max_length=60_000, description="Run by bash, as the session's user.")
    cwd: str = Field(default="", max_length=4096, description="The home folder when empty.")
    env: Variables = {}
    timeout: float | None = Field(default=None, gt=0, le=28_800, description="Seconds. Past it the command is ended.")
    background: bool = Field(default=False, description="Answer at once, and run on whether or not anybody waits.")


class CommandResult(CommandOutcome):
    """How a command ended and what it printed. ``exit_code`` is negative for a signal."""

    model_config = ConfigDict(json_schema_extra={"example": _RESULT})

    stdout: str
    stderr: str


class CommandView(BaseModel):
    """A command, with its result once it has ended."""

    command_id: str
    command: str
    state: Literal["running", "done"]
    started_at: float = Field(description="Seconds since 1970.")
    ended_at: float | None = None
    result: CommandResult | None = None


class CommandOutput(BaseModel):
    """What a command has printed since an earlier look, and whether it still runs."""

    command_id: str
    state: Literal["running", "done"]
    exit_code: int | None = Field(default=None, description="As in its result, once it has ended.")
    truncated: bool = Field(default=False, description="Whether output past the limit was left out.")
    next: int = Field(description="What to give as `after` to get only what it prints from here on.")
    stdout: str
    stderr: str


class CommandList(BaseModel):
    """Commands that run and those that ended not long ago, without their results."""

    commands: list[CommandView]


@router.post(
    "",
    summary="Run a shell command",
    response_model=CommandResult,
    responses={
        **problems(404, 409, 429, 503),
        200: {"description": "It ended; or, as server-sent events, what comes.", "content": {MEDIA_TYPE: {}}},
        202: {"model": CommandView, "description": "It runs in the background."},
    },
)
async def run(caller: CallerOf, service: ServiceOf, session_id: str, body: CommandBody, request: Request) -> Any:
    """Run a shell command beside the kernels.

    With `Accept: text/event-stream` its output comes as events (`started`, `stream`, `truncated`, `done`); else in
    one JSON answer at the end. When the client goes away the command is ended, unless it runs in the background.
    """
    service.sessions.check_accepting()
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use():
        running = live.commands.start(CommandRequest(body.command, body.cwd, body.env, body.timeout, body.background))
    if wants_events(request):
        return EventStream(journal_events(running.journal), at_end=lambda: _leave(live, running))
    if body.background:
        return _view(running, 202)
    if await unless_gone(request, running.done.wait()) is None:
        await live.commands.stop(running)
    return long_answer(running.answer, held=running.journal.reading())


@router.get("", summary="List commands", responses=problems(404, 409))
async def list_commands(caller: CallerOf, service: ServiceOf, session_id: str) -> CommandList:
    """Those that run and the last hundred that have ended, as far as they are kept, without their results."""
    live = await service.sessions.running(caller.tenant, session_id)
    return CommandList(commands=[_about(running) for running in live.commands.all()])


@router.get(
    "/{command_id}",
    summary="Look at or wait for a command",
    response_model=CommandView,
    responses=problems(404, 409),
)
async def look(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    command_id: str,
    wait: Annotated[float, Query(ge=0, le=300, description="Seconds to wait for its end.")] = 0,
) -> Any:
    """A command with its result, when it has one within `wait` seconds."""
    live = await service.sessions.running(caller.tenant, session_id)
    running = live.commands.find(command_id)
    with contextlib.suppress(TimeoutError):
        async with deadline(wait):
            await running.done.wait()
    return _view(running)


@router.get(
    "/{command_id}/output",
    summary="Read what a command prints",
    response_model=CommandOutput,
    responses=problems(404, 409),
)
async def output(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    command_id: str,
    after: Annotated[int, Query(ge=0, le=2**31, description="`next` of the last look.")] = 0,
    wait: Annotated[float, Query(ge=0, le=300, description="Seconds to wait for output, or for its end.")] = 0,
) -> Any:
    """What it has printed so far, while it runs and after its end."""
    live = await service.sessions.running(caller.tenant, session_id)
    running = live.commands.find(command_id)
    with live.use(lasting=True), contextlib.suppress(TimeoutError):
        async with deadline(wait), contextlib.aclosing(running.journal.follow(after)) as events:
            async for _, event in events:
                if event.type == "stream":
                    break
    return long_answer(lambda: _output(running, after), held=running.journal.reading())


@router.get(
    "/{command_id}/events",
    summary="Follow a command",
    response_class=EventStream,
    responses={**problems(404, 409), 200: {"content": {MEDIA_TYPE: {}}, "description": "Events from the first on."}},
)
async def follow(
    caller: CallerOf, service: ServiceOf, session_id: str, command_id: str, request: Request
) -> EventStream:
    """Its events from the first on, or after `Last-Event-ID`."""
    live = await service.sessions.running(caller.tenant, session_id)
    return EventStream(journal_events(live.commands.find(command_id).journal, last_event(request)))


@router.delete("/{command_id}", status_code=204, summary="End a command", responses=problems(404, 409))
async def stop(caller: CallerOf, service: ServiceOf, session_id: str, command_id: str) -> None:
    """End it and what it has started. One that has ended stays as it is."""
    live = await service.sessions.running(caller.tenant, session_id)
    await live.commands.stop(live.commands.find(command_id))


async def _leave(live: LiveSession, running: RunningCommand) -> None:
    if not running.request.background:
        await live.commands.stop(running)


def _view(running: RunningCommand, status: int = 200) -> Response:
    about = _about(running)
    return long_answer(lambda: _with_result(about, running.answer()), status, held=running.journal.reading())


def _with_result(about: CommandView, result: Iterable[Piece]) -> Iterator[Piece]:
    yield about.model_dump_json(exclude={"result"}).encode()[:-1] + b',"result":'
    yield from result
    yield b"}"


def _output(running: RunningCommand, after: int) -> Iterator[Piece]:
    until = running.journal.next
    about = CommandOutput(
        command_id=running.id,
        state=running.state,
        exit_code=running.outcome.exit_code if running.outcome else None,
        truncated=running.journal.truncated,
        next=max(until, after),
        stdout="",
        stderr="",
    )
    yield about.model_dump_json(exclude={"stdout", "stderr"}).encode()[:-1]
    for name in ("stdout", "stderr"):
        yield f',"{name}":'.encode()
        yield from running.journal.printed(name, after, until)
    yield b"}"


def _about(running: RunningCommand) -> CommandView:
    """Without its result."""
    return CommandView(
        command_id=running.id,
        command=running.request.command,
        state=running.state,
        started_at=running.started_at,
        ended_at=running.ended_at,
    )
