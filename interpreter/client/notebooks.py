"""Notebooks that the service runs: in a session of their own, or in one that is there."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Final, TypedDict, Unpack, cast

from interpreter.client.models import Event, NotebookResult
from interpreter.client.session_calls import SessionCalls
from interpreter.client.transport import LONG_SECONDS, Call, Transport
from interpreter.errors import InvalidRequest

NotebookSource = Mapping[str, Any] | Path
"""The content of an .ipynb file, or where one lies on this machine."""

_PATH: Final = "/v1/notebooks/execute"


class NotebookOptions(TypedDict, total=False):
    """How a notebook is run."""

    parameters: Mapping[str, Any]
    """JSON values for variables, set after the cell tagged ``parameters``, or before all others."""
    timeout: float | None
    """Seconds that each cell may take."""
    allow_errors: bool
    """Whether cells after one that raised are run."""


class OwnSessionOptions(NotebookOptions, total=False):
    """How a notebook is run in a session of its own."""

    template: str | None
    timeout_seconds: int | None
    """Seconds that the session lives at most."""
    env: Mapping[str, str]


class GivenSessionOptions(NotebookOptions, total=False):
    """How a notebook is run in a session that is there."""

    context_id: str | None
    """Which kernel runs it, such as ``main``. Without it one is started for the notebook and ended after it."""
    output_path: str | None
    """A file of the session that the executed notebook is also written to."""


class ServiceNotebooks:
    """Part of `AsyncClient`: notebooks that get a session of their own, which is stopped at the end."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def execute_notebook(self, notebook: NotebookSource, **options: Unpack[OwnSessionOptions]) -> NotebookResult:
        """Run a notebook to its end; options are those of `OwnSessionOptions`. How it ended is in the result.

        When this is cancelled its session is stopped. Raises OSError for a file that cannot be read.
        """
        return await _result(self.stream_notebook(notebook, **options))

    async def stream_notebook(
        self, notebook: NotebookSource, **options: Unpack[OwnSessionOptions]
    ) -> AsyncGenerator[Event]:
        """Run a notebook and give its events as they come.

        They are ``started``, for each cell ``cell_started``, its outputs with their ``index`` and ``cell_done``, at the
        end ``done`` with the executed notebook. Closing the generator before its end (``contextlib.aclosing``) stops
        its session.
        """
        body = {**options, "notebook": await _content(notebook)}
        async with contextlib.aclosing(_events(self._transport, body)) as events:
            async for event in events:
                yield event


class SessionNotebooks(SessionCalls):
    """Part of `AsyncSession`: notebooks that run in it."""

    async def execute_notebook(
        self, notebook: NotebookSource | None = None, path: str | None = None, **options: Unpack[GivenSessionOptions]
    ) -> NotebookResult:
        """Run a notebook, or the one at ``path`` in the session, to its end; options: `GivenSessionOptions`.

        How it ended is in the result. When this is cancelled the cell is interrupted. Raises OSError for a file that
        cannot be read.
        """
        return await _result(self.stream_notebook(notebook, path, **options))

    async def stream_notebook(
        self, notebook: NotebookSource | None = None, path: str | None = None, **options: Unpack[GivenSessionOptions]
    ) -> AsyncGenerator[Event]:
        """Run a notebook and give its events as they come, as `ServiceNotebooks.stream_notebook` does.

        Closing the generator before its end (``contextlib.aclosing``) interrupts the cell.
        """
        content = None if notebook is None else await _content(notebook)
        body = {**options, "notebook": content, "path": path, "session_id": self.id}
        async with contextlib.aclosing(_events(self._transport, body)) as events:
            async for event in events:
                yield event


async def _events(transport: Transport, body: Mapping[str, Any]) -> AsyncGenerator[Event]:
    given = {key: value for key, value in body.items() if value is not None}
    call = Call("POST", _PATH, body=given, seconds=LONG_SECONDS)
    async with contextlib.aclosing(transport.events(call)) as events:
        async for event in events:
            yield event


async def _result(events: AsyncGenerator[Event]) -> NotebookResult:
    last: Event = {}
    async with contextlib.aclosing(events):
        async for event in events:
            last = event
    return NotebookResult.model_validate(last)


async def _content(notebook: NotebookSource) -> dict[str, Any]:
    if not isinstance(notebook, Path):
        return dict(notebook)
    try:
        value: Any = json.loads(await asyncio.to_thread(notebook.read_bytes))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{notebook} is not a notebook")
    return cast("dict[str, Any]", value)
