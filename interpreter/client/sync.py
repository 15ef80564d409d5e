"""The client for code without asyncio: the same methods, which wait.

It is the asyncio client in a loop of its own, so that what requests look like is written once; it can be used where a
loop runs already, such as in a notebook. Callbacks for progress are called in that loop's thread, ``on_input`` in
the caller's.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from interpreter.client.aio import TIMEOUT, AsyncClient, AsyncSession, GroupBy, NetworkMode, TimeoutMode
from interpreter.client.loop import BackgroundLoop
from interpreter.client.models import (
    CommandInfo,
    CommandOutput,
    CommandResult,
    Event,
    ExecutionInfo,
    ExecutionResult,
    FileInfo,
    NotebookResult,
    SessionInfo,
    SessionUsage,
    TemplateInfo,
    UsageGroup,
)
from interpreter.client.notebooks import GivenSessionOptions, NotebookSource, OwnSessionOptions
from interpreter.client.pieces import Progress, from_iterable
from interpreter.client.session_files import TEXT_LIMIT, ArchiveFormat
from interpreter.errors import Conflict, InterpreterError


class Client:
    """A service; see AsyncClient."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(url, api_key, timeout=timeout, transport=transport)
        self._loop = BackgroundLoop()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Sessions go on."""
        if not self._closed:
            self._closed = True
            self._loop.run(self._client.close())
            self._loop.close()

    def create_session(
        self,
        template: str | None = None,
        *,
        name: str | None = None,
        timeout_seconds: int | None = None,
        timeout_mode: TimeoutMode | None = None,
        network_mode: NetworkMode | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "Session":
        """Start a session; it runs when this returns."""
        started = self._client.create_session(
            template,
            name=name,
            timeout_seconds=timeout_seconds,
            timeout_mode=timeout_mode,
            network_mode=network_mode,
            env=env,
            metadata=metadata,
        )
        return Session(self._loop, self._loop.run(started))

    def session(self, session_id: str) -> "Session":
        """A session that is there already; no request is made."""
        return Session(self._loop, self._client.session(session_id))

    def list_sessions(
        self, *, state: str | None = None, template: str | None = None, limit: int | None = None
    ) -> Generator[SessionInfo]:
        """Sessions that run and sessions that are over, newest first; ``limit`` of them at most."""
        return self._loop.iterate(self._client.list_sessions(state=state, template=template, limit=limit))

    def templates(self) -> list[TemplateInfo]:
        """All templates that are defined or built; sessions can be started from built ones."""
        return self._loop.run(self._client.templates())

    def usage(
        self, start: datetime | None = None, end: datetime | None = None, group_by: GroupBy = "day"
    ) -> list[UsageGroup]:
        """Sums over sessions from ``start`` (30 days ago) to ``end`` (now); a time without a zone is this machine's."""
        return self._loop.run(self._client.usage(start, end, group_by))

    def execute_notebook(self, notebook: NotebookSource, **options: Unpack[OwnSessionOptions]) -> NotebookResult:
        """Run a notebook to its end in a session of its own. How it ended is in the result."""
        return self._loop.run(self._client.execute_notebook(notebook, **options))

    def stream_notebook(self, notebook: NotebookSource, **options: Unpack[OwnSessionOptions]) -> Generator[Event]:
        """Run a notebook in a session of its own and give its events as they come.

        Closing the generator before its end stops the session.
        """
        return self._loop.iterate(self._client.stream_notebook(notebook, **options))


class Session:
    """A session of a service; see AsyncSession. As a context manager it is stopped when that is left."""

    def __init__(self, loop: BackgroundLoop, session: AsyncSession) -> None:
        self.id = session.id
        self._loop = loop
        self._session = session

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What went wrong inside says more than that the session could not be stopped then.
        with contextlib.suppress(InterpreterError) if error else contextlib.nullcontext():
            self.stop()

    def info(self) -> SessionInfo:
        """What the service knows of it, also when it is over."""
        return self._loop.run(self._session.info())

    def stop(self) -> SessionInfo:
        """End it at once. Stopping what is over already changes nothing."""
        return self._loop.run(self._session.stop())

    def set_timeout(self, seconds: int) -> SessionInfo:
        """Set its timeout anew, counted as its mode says: from its start, or from its last use."""
        return self._loop.run(self._session.set_timeout(seconds))

    def usage(self) -> SessionUsage:
        """What it has used so far."""
        return self._loop.run(self._session.usage())

    def execute(
        self,
        code: str,
        *,
        context_id: str = "main",
        timeout: float | None = None,
        silent: bool = False,
        store_history: bool = True,
    ) -> ExecutionResult:
        """Run code to its end, in ``timeout`` seconds. How it ended is in the result."""
        return self._loop.run(
            self._session.execute(
                code, context_id=context_id, timeout=timeout, silent=silent, store_history=store_history
            )
        )

    def stream(
        self,
        code: str,
        *,
        context_id: str = "main",
        timeout: float | None = None,
        silent: bool = False,
        store_history: bool = True,
        on_input: Callable[[str, bool], str] | None = None,
        allow_stdin: bool = False,
    ) -> Generator[Event]:
        """Run code and give its events as they come; ``on_input`` is called after the event that asks.

        Closing the generator before its end interrupts the code.
        """
        events = self._session.stream(
            code,
            context_id=context_id,
            timeout=timeout,
            silent=silent,
            store_history=store_history,
            allow_stdin=allow_stdin or on_input is not None,
        )
        with contextlib.closing(self._loop.iterate(events)) as following:
            for event in following:
                yield event
                if on_input is not None and event["type"] == "input_request":
                    value = on_input(event.get("prompt", ""), bool(event.get("password")))
                    # The code may have been interrupted, or have ended, before the answer was there.
                    with contextlib.suppress(Conflict):
                        self.answer_input(value, context_id)

    def answer_input(self, value: str, context_id: str = "main") -> None:
        """Answer the code that waits in ``input()``. Raises Conflict when none does."""
        self._loop.run(self._session.answer_input(value, context_id))

    def execute_detached(
        self,
        code: str,
        *,
        context_id: str = "main",
        timeout: float | None = None,
        silent: bool = False,
        store_history: bool = True,
    ) -> str:
        """Run code whether or not anybody waits; returns the execution's id."""
        return self._loop.run(
            self._session.execute_detached(
                code, context_id=context_id, timeout=timeout, silent=silent, store_history=store_history
            )
        )

    def execution(self, execution_id: str, wait: float = 0) -> ExecutionInfo:
        """An execution with its result, when it has one within ``wait`` seconds (at most 300)."""
        return self._loop.run(self._session.execution(execution_id, wait))

    def interrupt(self, context_id: str = "main") -> None:
        """Interrupt what runs, as Ctrl-C does; variables stay."""
        self._loop.run(self._session.interrupt(context_id))

    def restart(self, context_id: str = "main") -> None:
        """Replace a kernel by a new one: variables are gone, files stay."""
        self._loop.run(self._session.restart(context_id))

    def contexts(self) -> list[str]:
        """Names of its contexts; ``main`` is there from the start."""
        return self._loop.run(self._session.contexts())

    def open_context(self, name: str) -> None:
        """Start one more kernel: variables of its own, the same files."""
        self._loop.run(self._session.open_context(name))

    def close_context(self, name: str) -> None:
        """End a kernel with all that it holds."""
        self._loop.run(self._session.close_context(name))

    def run(
        self, command: str, *, cwd: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> CommandResult:
        """Run a shell command to its end, in ``timeout`` seconds. How it ended is in the result."""
        return self._loop.run(self._session.run(command, cwd=cwd, env=env, timeout=timeout))

    def stream_command(
        self, command: str, *, cwd: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Generator[Event]:
        """Run a shell command and give its events as they come. Closing the generator before its end ends it."""
        return self._loop.iterate(self._session.stream_command(command, cwd=cwd, env=env, timeout=timeout))

    def start_command(
        self, command: str, *, cwd: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> str:
        """Start a shell command that runs on by itself; returns its id."""
        return self._loop.run(self._session.start_command(command, cwd=cwd, env=env, timeout=timeout))

    def command(self, command_id: str, wait: float = 0) -> CommandInfo:
        """A command with its result, when it has one within ``wait`` seconds (at most 300)."""
        return self._loop.run(self._session.command(command_id, wait))

    def command_output(self, command_id: str, after: int = 0, wait: float = 0) -> CommandOutput:
        """What a command prints, also while it runs: from ``next`` of an earlier look on, waiting for some."""
        return self._loop.run(self._session.command_output(command_id, after, wait))

    def stop_command(self, command_id: str) -> None:
        """End a command and what it has started."""
        self._loop.run(self._session.stop_command(command_id))

    def execute_notebook(
        self, notebook: NotebookSource | None = None, path: str | None = None, **options: Unpack[GivenSessionOptions]
    ) -> NotebookResult:
        """Run a notebook, or the one at ``path`` in the session, to its end. How it ended is in the result."""
        return self._loop.run(self._session.execute_notebook(notebook, path, **options))

    def stream_notebook(
        self, notebook: NotebookSource | None = None, path: str | None = None, **options: Unpack[GivenSessionOptions]
    ) -> Generator[Event]:
        """Run a notebook and give its events as they come. Closing the generator before its end interrupts the cell."""
        return self._loop.iterate(self._session.stream_notebook(notebook, path, **options))

    def upload(
        self,
        source: Path | bytes | Iterable[bytes],
        path: str,
        *,
        overwrite: bool = True,
        progress: Progress | None = None,
    ) -> int:
        """Write a file, whole or not at all; returns its size in bytes. Raises OSError as AsyncSession does."""
        given = source if isinstance(source, Path | bytes) else from_iterable(source)
        return self._loop.run(self._session.upload(given, path, overwrite=overwrite, progress=progress))

    def download(self, path: str, target: Path | int | None = None, *, progress: Progress | None = None) -> bytes:
        """A file's bytes. With ``target`` they are written there, whole or not at all, and none are returned.

        In a folder the file has its own name; an open descriptor gets the bytes as they come.
        """
        return self._loop.run(self._session.download(path, target, progress=progress))

    def archive(self, path: str, target: Path, format: ArchiveFormat = "tar.gz") -> None:  # noqa: A002
        """Write an archive of a folder (or file) to ``target``, whole or not at all. A zip leaves links out."""
        self._loop.run(self._session.archive(path, target, format))

    def read_text(self, path: str, limit: int = TEXT_LIMIT) -> str:
        """The first ``limit`` bytes of a file as text (at most 1,000,000); what is no UTF-8 is replaced."""
        return self._loop.run(self._session.read_text(path, limit))

    def list_files(self, path: str = ".", hidden: bool = True) -> Generator[FileInfo]:
        """A folder's entries by name; without ``hidden`` no dot files."""
        return self._loop.iterate(self._session.list_files(path, hidden))

    def describe(self, path: str) -> FileInfo:
        """A file or folder; a link is not followed. Raises FileNotFound."""
        return self._loop.run(self._session.describe(path))

    def make_folder(self, path: str) -> FileInfo:
        """Make a folder and those on the way to it; one that is there will do."""
        return self._loop.run(self._session.make_folder(path))

    def move(self, source: str, target: str, overwrite: bool = False) -> FileInfo:
        """Move or rename. What lies at the target is replaced only with ``overwrite``, else raises FileExists."""
        return self._loop.run(self._session.move(source, target, overwrite))

    def remove(self, path: str, recursive: bool = False) -> None:
        """Remove a file, a link or a folder; one that is not empty only with ``recursive``."""
        self._loop.run(self._session.remove(path, recursive))
