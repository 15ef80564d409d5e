"""The MCP server, and the two ways to reach it: as part of the service over HTTP, or over stdio."""

import asyncio
import hashlib
import os
import stat
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any, Final, cast

import anyio
import httpx
from fastapi import FastAPI
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.connection import Connection
from mcp.server.context import CallNext, HandlerResult, ServerMiddleware, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import UNSUPPORTED_PROTOCOL_VERSION
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from interpreter.client import AsyncClient
from interpreter.mcp.sandbox import Sandbox
from interpreter.mcp.tools import SandboxOf, ServerContext, add_tools

PATH: Final = "/mcp"
IN_PROCESS_URL: Final = "http://127.0.0.1"
"""What a client in the same process calls the service: a name that its check of callers knows as this machine's."""
_INSTRUCTIONS: Final = (
    "A sandbox for Python code and shell commands: a Linux virtual machine without network, of your own for as long "
    "as you are connected. Prefer execute_code to working things out by hand: calculations, data, plots. Look at "
    "what it answers before you go on."
)
_STATE: Final = "interpreter.sandbox"
_BODY_LIMIT: Final = 16 * 1024 * 1024
_LINE_LIMIT: Final = 64 * 1024 * 1024


def create_server(sandbox_of: SandboxOf, middleware: Sequence[ServerMiddleware[Any]] = ()) -> MCPServer[Any]:
    """An MCP server with the tools. ``sandbox_of`` finds the sandbox of the MCP session that a call belongs to."""
    server: MCPServer[Any] = MCPServer(
        "interpreter",
        title="Code interpreter",
        instructions=_INSTRUCTIONS,
        version=version("interpreter"),
        log_level="WARNING",
        middleware=middleware,
    )
    add_tools(server, sandbox_of)
    return server


def mount_mcp(app: FastAPI) -> AbstractAsyncContextManager[None]:
    """Add MCP over streamable HTTP at ``/mcp`` to the service's application, behind its check of callers.

    It works while the context that this gives is open; MCP sessions end with it. Each tool call goes to the
    application in this process, with the key that its caller sent.
    """
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    def sandbox_of(ctx: ServerContext) -> Sandbox:
        connection = _connection(ctx)
        sandbox: Sandbox | None = connection.state.get(_STATE)
        if sandbox is None:
            key = _key(ctx.request_context.request)
            sandbox = Sandbox(lambda: AsyncClient(IN_PROCESS_URL, key, transport=transport))
            connection.state[_STATE] = sandbox
            connection.exit_stack.push_async_callback(sandbox.close)
        return sandbox

    server = create_server(sandbox_of, [_only_with_sessions])
    # Hosts and origins are the service's to check, as for every other route.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    served = server.streamable_http_app(
        streamable_http_path=PATH, transport_security=unchecked, max_request_body_size=_BODY_LIMIT
    )
    for route in served.routes:
        assert isinstance(route, Route)  # noqa: S101  (it makes no others)
        app.router.routes.append(Route(route.path, _BoundToCaller(route.app), methods=route.methods))
    return server.session_manager.run()


class _BoundToCaller:
    """Tells the package who calls: it lets nobody into an MCP session but who began it, whoever else knows its id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        key = _key(Request(scope)) or ""
        # Not the key itself: what is kept of it for as long as the session lives need only be alike.
        caller = hashlib.sha256(key.encode()).hexdigest()
        user = AuthenticatedUser(AccessToken(token=caller, client_id=caller, scopes=[]))
        await self._app({**scope, "user": user}, receive, send)


async def serve_stdio(connect: Callable[[], AsyncClient]) -> None:
    """Serve one client over standard input and output until it closes the input; then stop its session."""
    sandbox = Sandbox(connect)
    server = create_server(lambda _: sandbox)
    try:
        async with _lines() as lines, stdio_server(stdin=lines) as (incoming, outgoing):
            lowlevel = server._lowlevel_server  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
            await lowlevel.run(incoming, outgoing, lowlevel.create_initialization_options())
    finally:
        await sandbox.close()


async def _only_with_sessions(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Sends clients of the stateless protocol (2026-07-28) back to the one before: without MCP sessions over HTTP
    there is nothing that a sandbox could belong to."""
    if ctx.protocol_version not in HANDSHAKE_PROTOCOL_VERSIONS:
        raise MCPError(
            UNSUPPORTED_PROTOCOL_VERSION,
            "this server keeps a sandbox for each MCP session, which this version of the protocol does not have",
            {"supported": list(HANDSHAKE_PROTOCOL_VERSIONS), "requested": ctx.protocol_version},
        )
    return await call_next(ctx)


def _connection(ctx: ServerContext) -> Connection:
    # The package offers a connection's state and exit stack to handlers, but has no public way to it yet.
    return ctx.request_context.session._connection  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _key(request: Request | None) -> str | None:
    if request is None:
        return None
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() in {"bearer", "token"} else request.headers.get("x-api-key")


@asynccontextmanager
async def _lines() -> AsyncGenerator[anyio.AsyncFile[str] | None]:
    """Standard input's lines, read so that a signal can end the wait for the next one.

    The package's own reader blocks a thread, which would keep the process until its client writes or leaves.
    None when the input is no pipe or socket: then that reader must do.
    """
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        yield None
        return
    reader = asyncio.StreamReader(limit=_LINE_LIMIT)
    pipe = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )

    async def read() -> AsyncIterator[str]:
        while line := await reader.readline():
            yield line.decode("utf-8", "replace")

    try:
        # All that is asked of the file is to be iterated over.
        yield cast("anyio.AsyncFile[str]", read())
    finally:
        transport.close()
