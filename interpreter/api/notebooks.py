"""The route of notebooks: one that is sent, or lies in a session, runs from its first cell to its last."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict

from interpreter.api.answers import in_pieces, long_answer
from interpreter.api.contexts import CONTEXT_PATTERN
from interpreter.api.events import MEDIA_TYPE, EventStream, journal_events, unless_gone, wants_events
from interpreter.api.http.bodies import long_body
from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.kernel.paths import MAX_PATH
from interpreter.notebooks.apart import without_outputs
from interpreter.notebooks.format import parse_notebook
from interpreter.notebooks.run import NotebookRequest, RunningNotebook, start_notebook
from interpreter.sessions.outcome import NotebookOutcome
from interpreter.settings import MAX_TIMEOUT
from interpreter.store.records import NewSession, Timeout, Variables

router = APIRouter(prefix="/v1/notebooks", tags=["notebooks"])

_CELL: JsonDict = {
    "id": "greet",
    "cell_type": "code",
    "metadata": {},
    "execution_count": None,
    "outputs": [],
    "source": "print('hello', name)",
}
_BODY: JsonDict = {
    "notebook": {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [_CELL]},
    "parameters": {"name": "Ada"},
    "timeout": 60,
}
_RESULT: JsonDict = {
    "status": "ok",
    "session_id": "5f0c1f7e1d4b4b5f9a0e6f1b2c3d4e5f",
    "error": None,
    "failed_cell": None,
    "truncated": False,
    "duration_seconds": 0.21,
    "notebook": {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"papermill": {"parameters": {"name": "Ada"}}},
        "cells": [
            {
                **_CELL,
                "execution_count": 1,
                "outputs": [{"output_type": "stream", "name": "stdout", "text": "hello Ada"}],
            }
        ],
    },
}


class NotebookBody(BaseModel):
    """A notebook and how to run it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": _BODY})

    notebook: dict[str, Any] | None = Field(
        default=None, description="The content of an .ipynb file of nbformat 3 or 4. Either this or `path`."
    )
    path: str | None = Field(
        default=None, min_length=1, max_length=MAX_PATH, description="An .ipynb file of the session `session_id`."
    )
    session_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="A session that runs. Without it the notebook gets one of its own, which is stopped at the end.",
    )
    context_id: str | None = Field(
        default=None,
        pattern=CONTEXT_PATTERN,
        description="Which kernel of `session_id` runs it, such as main. Without it one is started for the notebook "
        "and ended after it.",
    )
    template: str | None = Field(default=None, max_length=100, description="What its own session is restored from.")
    timeout_seconds: Timeout | None = Field(
        default=None, description="Seconds that its own session lives at most; 28,800 when not given."
    )
    env: Variables = Field(default={}, description="Environment variables of its own session.")
    parameters: dict[str, Any] = Field(
        default={}, description="Variables that are set after the cell tagged `parameters`, or before all others."
    )
    timeout: float | None = Field(
        default=None,
        gt=0,
        le=28_800,
        description="Seconds that each cell may take. Past it the cell is interrupted and the notebook ends.",
    )
    allow_errors: bool = Field(default=False, description="Whether cells after one that raised are run.")
    output_path: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_PATH,
        description="A file of the session `session_id` that the executed notebook is also written to.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.notebook is None) == (self.path is None):
            raise ValueError("give either notebook or path")
        if self.session_id is None:
            for name in ("path", "context_id", "output_path"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is of a session: give its session_id")
        elif self.template is not None or self.timeout_seconds is not None or self.env:
            raise ValueError(
                "template, timeout_seconds and env are for a session of the notebook's own, not session_id"
            )
        return self

    def request(self, *, followed: bool) -> NotebookRequest:
        """As sessions take it; ``followed``: its events are read."""
        return NotebookRequest(
            new=NewSession(
                template=self.template,
                # It ends with the notebook, which may take long; `timeout` is what bounds its cells.
                timeout_seconds=self.timeout_seconds or MAX_TIMEOUT,
                env=self.env,
                name="notebook",
            ),
            notebook=self.notebook,
            path=self.path,
            session_id=self.session_id,
            context=self.context_id,
            parameters=self.parameters,
            timeout=self.timeout,
            allow_errors=self.allow_errors,
            output_path=self.output_path,
            followed=followed,
        )


class NotebookResult(NotebookOutcome):
    """How a notebook ended, and the notebook with its outputs."""

    model_config = ConfigDict(json_schema_extra={"example": _RESULT})

    notebook: dict[str, Any] = Field(description="Of nbformat 4.5, with papermill's metadata.")


_SCHEMA: Final = NotebookBody.model_json_schema()


async def _body(request: Request) -> NotebookBody:
    # Not by FastAPI, which parses in the event loop: a notebook may have 100 MB.
    data = await without_outputs(await long_body(request))
    try:
        return await asyncio.to_thread(lambda: NotebookBody.model_validate(parse_notebook(data)))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


@router.post(
    "/execute",
    summary="Run a notebook",
    response_model=NotebookResult,
    responses={
        **problems(404, 409, 413, 429, 503, 504, 507),
        200: {
            "description": "It ended, well or not; or, as server-sent events, what comes.",
            "content": {MEDIA_TYPE: {}},
        },
    },
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _SCHEMA}}}},
)
async def execute(
    caller: CallerOf, service: ServiceOf, body: Annotated[NotebookBody, Depends(_body)], request: Request
) -> Any:
    """Run a notebook's code cells in their order, in a clean kernel, with parameters, as papermill does.

    It stops at the first cell that raises, unless `allow_errors` is set or that cell is tagged `raises-exception`;
    cells tagged `skip-execution` are not run. With `Accept: text/event-stream` events tell how it goes on: `started`,
    for each cell `cell_started`, its outputs as those of executions with its `index`, `cell_done`, and at the end
    `done` with the whole answer. When the client goes away before the end, the cell is interrupted and what was
    started for the notebook is ended.
    """
    running = await start_notebook(service.sessions, caller.tenant, body.request(followed=wants_events(request)))
    if wants_events(request):
        return EventStream(_events(running), at_end=running.close)
    try:
        await unless_gone(request, running.wait())
    finally:
        await asyncio.shield(running.close())
    return long_answer(lambda: (b"{", *running.answer, b"}"))


async def _events(running: RunningNotebook) -> AsyncGenerator[str | bytes]:
    async for event in journal_events(running.journal):
        yield event
    await running.wait()
    # In the pieces that it was made in: it may be long.
    yield 'event: done\ndata: {"type": "done", '
    for piece in in_pieces(running.answer):
        yield piece
    yield "}\n\n"
