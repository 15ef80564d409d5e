"""The client for asyncio."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self

import httpx

from interpreter.client.answering import answering
from interpreter.client.models import (
    CommandInfo,
    CommandOutput,
    CommandResult,
    ContextList,
    Event,
    ExecutionInfo,
    ExecutionResult,
    SessionInfo,
    SessionPage,
    SessionUsage,
    TemplateInfo,
    TemplateList,
    UsageGroup,
    UsageReport,
)
from interpreter.client.notebooks import ServiceNotebooks, SessionNotebooks
from interpreter.client.results import command_result, execution_result
from interpreter.client.session_files import SessionFiles
from interpreter.client.transport import LONG_SECONDS, Call, Transport
from interpreter.errors import Conflict, InterpreterError

GroupBy = Literal["day", "template", "tenant"]
NetworkMode = Literal["SANDBOX", "PUBLIC"]
TimeoutMode = Literal["total", "idle"]
OnInput = Callable[[str, bool], str | Awaitable[str]]
"""Answers the code's ``input()``: gets the prompt and whether the answer is a password."""

TIMEOUT: Final = 60.0
_SESSION_PAGE: Final = 200


class AsyncClient(ServiceNotebooks):
    """A service. Without ``url`` that of INTERPRETER_URL, else http://127.0.0.1:8888; without ``api_key``
    INTERPRETER_API_KEY.

    ``timeout`` is in seconds, for a request with its retries; code and commands have timeouts of their own. Every
    method raises InterpreterError: the class that the service's error code names, ServiceUnreachable when there is
    no answer. Raises ConfigurationError.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(Transport(url, api_key, timeout=timeout, transport=transport))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. Sessions go on."""
        await self._transport.close()

    async def create_session(
        self,
        template: str | None = None,
        *,
        name: str | None = None,
        timeout_seconds: int | None = None,
        timeout_mode: TimeoutMode | None = None,
        network_mode: NetworkMode | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "AsyncSession":
        """Start a session; it runs when this returns."""
        wanted = {
            "template": template,
            "name": name,
            "timeout_seconds": timeout_seconds,
            "timeout_mode": timeout_mode,
            "network_mode": network_mode,
            "env": None if env is None else dict(env),
            "metadata": None if metadata is None else dict(metadata),
        }
        body = {key: value for key, value in wanted.items() if value is not None}
        # The first session after an upgrade of QEMU has to wait for its template's new snapshot.
        info = await self._transport.get(Call("POST", "/v1/sessions", body=body, seconds=LONG_SECONDS), SessionInfo)
        return AsyncSession(self._transport, info.id)

    def session(self, session_id: str) -> "AsyncSession":
        """A session that is there already; no request is made."""
        return AsyncSession(self._transport, session_id)

    async def list_sessions(
        self, *, state: str | None = None, template: str | None = None, limit: int | None = None
    ) -> AsyncGenerator[SessionInfo]:
        """Sessions that run and sessions that are over, newest first; ``limit`` of them at most."""
        left = limit
        after: str | None = None
        while left is None or left > 0:
            size = _SESSION_PAGE if left is None else min(left, _SESSION_PAGE)
            params = {"state": state, "template": template, "limit": size, "after": after}
            page = await self._transport.get(Call("GET", "/v1/sessions", params), SessionPage)
            for info in page.sessions[:left]:
                yield info
            if page.next is None:
                return
            after, left = page.next, None if left is None else left - len(page.sessions)

    async def templates(self) -> list[TemplateInfo]:
        """All templates that are defined or built; sessions can be started from built ones."""
        return (await self._transport.get(Call("GET", "/v1/templates"), TemplateList)).templates

    async def usage(
        self, start: datetime | None = None, end: datetime | None = None, group_by: GroupBy = "day"
    ) -> list[UsageGroup]:
        """Sums over sessions from ``start`` (30 days ago) to ``end`` (now); a time without a zone is this machine's."""
        times = {"from": start and start.astimezone().isoformat(), "to": end and end.astimezone().isoformat()}
        call = Call("GET", "/v1/usage", {**times, "group_by": group_by})
        return (await self._transport.get(call, UsageReport)).groups


class AsyncSession(SessionFiles, SessionNotebooks):
    """A session of a service. As a context manager it is stopped when that is left.

    Paths are the session's; relative ones start in its home folder.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What went wrong inside says more than that the session could not be stopped then.
        with contextlib.suppress(InterpreterError) if error else contextlib.nullcontext():
            await self.stop()

    async def info(self) -> SessionInfo:
        """What the service knows of it, also when it is over."""
        return await self._transport.get(self._call("GET"), SessionInfo)

    async def stop(self) -> SessionInfo:
        """End it at once. Stopping what is over already changes nothing."""
        return await self._transport.get(self._call("DELETE"), SessionInfo)

    async def set_timeout(self, seconds: int) -> SessionInfo:
        """Set its timeout anew, counted as its mode says: from its start, or from its last use."""
        return await self._transport.get(self._call("POST", "timeout", body={"timeout_seconds": seconds}), SessionInfo)

    async def usage(self) -> SessionUsage:
        """What it has used so far."""
        return await self._transport.get(self._call("GET", "usage"), SessionUsage)

    # Code

    async def execute(
        self,
        code: str,
        *,
        context_id: str = "main",
        timeout: float | None = None,
        silent: bool = False,
        store_history: bool = True,
    ) -> ExecutionResult:
        """Run code to its end, in ``timeout`` seconds. How it ended is in the result: an exception of the code, its
        timeout, and the kernel's death raise nothing here. When this is cancelled the code is interrupted.
        """
        # Over the stream of events: its comments keep a long silence from being taken for a broken connection.
        events = self.stream(code, context_id=context_id, timeout=timeout, silent=silent, store_history=store_history)
        return execution_result([event async for event in events], context_id)

    async def stream(
        self,
        code: str,
        *,
        context_id: str = "main",
        timeout: float | None = None,
        silent: bool = False,
        store_history: bool = True,
        on_input: OnInput | None = None,
        allow_stdin: bool = False,
    ) -> AsyncGenerator[Event]:
        """Run code and give its events as they come: ``started``, outputs, ``input_request``, at the end ``done``.

        ``on_input`` answers the code's ``input()``; with ``allow_stdin`` in its place ``answer_input`` does. Closing
        the generator before its end (``contextlib.aclosing``) interrupts the code.
        """
        body = _code(code, context_id, timeout, silent, store_history)
        call = self._call("POST", "execute", body={**body, "allow_stdin": allow_stdin or on_input is not None})
        events = self._transport.events(call)

        async def answer(event: Event) -> None:
            if on_input is None:
                return
            value = on_input(event.get("prompt", ""), bool(event.get("password")))
            value = value if isinstance(value, str) else await value
            # The code may have been interrupted, or have ended, before the answer was there.
            with contextlib.suppress(Conflict):
                await self.answer_input(value, context_id)

        async with contextlib.aclosing(answering(events, answer) if on_input else events) as answered:
            async for event in answered:
                yield event

    async def answer_input(self, value: str, context_id: str = "main") -> None:
        """Answer the code that waits in ``input()``. Raises Conflict when none does."""
        await self._transport.send(self._call("POST", "stdin", body={"value": value, "context_id": context_id}))

    async def execute_detached(
        self,
        code: str,
        *,
        context_id: str = "main",
        timeout: float | None = None,
        silent: bool = False,
        store_history: bool = True,
    ) -> str:
        """Run code whether or not anybody waits; returns the execution's id."""
        body = {**_code(code, context_id, timeout, silent, store_history), "detach": True}
        return (await self._transport.get(self._call("POST", "execute", body=body), ExecutionInfo)).execution_id

    async def execution(self, execution_id: str, wait: float = 0) -> ExecutionInfo:
        """An execution with its result, when it has one within ``wait`` seconds (at most 300)."""
        call = self._call("GET", "executions", execution_id, params={"wait": wait}, seconds=wait)
        return await self._transport.get(call, ExecutionInfo)

    async def interrupt(self, context_id: str = "main") -> None:
        """Interrupt what runs, as Ctrl-C does; variables stay."""
        await self._transport.send(self._call("POST", "interrupt", body={"context_id": context_id}))

    async def restart(self, context_id: str = "main") -> None:
        """Replace a kernel by a new one: variables are gone, files stay."""
        call = self._call("POST", "restart", body={"context_id": context_id}, seconds=LONG_SECONDS)
        await self._transport.send(call)

    async def contexts(self) -> list[str]:
        """Names of its contexts; ``main`` is there from the start."""
        listed = await self._transport.get(self._call("GET", "contexts"), ContextList)
        return [context.context_id for context in listed.contexts]

    async def open_context(self, name: str) -> None:
        """Start one more kernel: variables of its own, the same files."""
        await self._transport.send(self._call("POST", "contexts", body={"context_id": name}))

    async def close_context(self, name: str) -> None:
        """End a kernel with all that it holds."""
        await self._transport.send(self._call("DELETE", "contexts", name))

    # Shell commands

    async def run(
        self, command: str, *, cwd: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> CommandResult:
        """Run a shell command to its end, in ``timeout`` seconds. How it ended is in the result."""
        events = self.stream_command(command, cwd=cwd, env=env, timeout=timeout)
        return command_result([event async for event in events])

    async def stream_command(
        self, command: str, *, cwd: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> AsyncGenerator[Event]:
        """Run a shell command and give its events as they come: ``started``, ``stream``, at the end ``done``.

        Closing the generator before its end (``contextlib.aclosing``) ends the command.
        """
        call = self._call("POST", "commands", body=_command(command, cwd, env, timeout))
        async with contextlib.aclosing(self._transport.events(call)) as events:
            async for event in events:
                yield event

    async def start_command(
        self, command: str, *, cwd: str = "", env: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> str:
        """Start a shell command that runs on by itself; returns its id."""
        call = self._call("POST", "commands", body={**_command(command, cwd, env, timeout), "background": True})
        return (await self._transport.get(call, CommandInfo)).command_id

    async def command(self, command_id: str, wait: float = 0) -> CommandInfo:
        """A command with its result, when it has one within ``wait`` seconds (at most 300)."""
        call = self._call("GET", "commands", command_id, params={"wait": wait}, seconds=wait)
        return await self._transport.get(call, CommandInfo)

    async def command_output(self, command_id: str, after: int = 0, wait: float = 0) -> CommandOutput:
        """What a command prints, also while it runs: from ``next`` of an earlier look on, waiting for some."""
        params = {"after": after, "wait": wait}
        call = self._call("GET", "commands", command_id, "output", params=params, seconds=wait)
        return await self._transport.get(call, CommandOutput)

    async def stop_command(self, command_id: str) -> None:
        """End a command and what it has started."""
        await self._transport.send(self._call("DELETE", "commands", command_id))


def _code(code: str, context_id: str, timeout: float | None, silent: bool, store_history: bool) -> dict[str, Any]:
    options = {"timeout": timeout, "silent": silent, "store_history": store_history}
    return {"code": code, "context_id": context_id, **options}


def _command(command: str, cwd: str, env: Mapping[str, str] | None, timeout: float | None) -> dict[str, Any]:
    return {"command": command, "cwd": cwd, "env": dict(env or {}), "timeout": timeout}
