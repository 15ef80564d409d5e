"""A service's application with MCP at /mcp, on a port of its own."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import uvicorn

from interpreter.api.app import create_app
from interpreter.api.service import Service
from interpreter.mcp.server import mount_mcp


@asynccontextmanager
async def serve_with_mcp(service: Service) -> AsyncGenerator[str]:
    """The address at which it is served."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Here, so that who comes before the server is up waits for it.
        listener.listen()
        ending = asyncio.Event()
        # In one task from start to end: what MCP opens must be closed by the task that opened it, and fixtures are not.
        serving = asyncio.create_task(_serve(service, listener, ending))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ending.set()
            await serving


async def _serve(service: Service, listener: socket.socket, ending: asyncio.Event) -> None:
    app = create_app(service)
    async with mount_mcp(app):
        server = uvicorn.Server(
            uvicorn.Config(app, lifespan="off", http="h11", log_config=None, timeout_graceful_shutdown=1)
        )
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
        serving = asyncio.create_task(server.serve([listener]))
        await ending.wait()
        server.should_exit = True
    await serving
