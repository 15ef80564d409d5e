"""``interpreter mcp``: the tools for language models over standard input and output."""

import logging
import os

import httpx

from interpreter.api.app import create_app, open_service
from interpreter.client import AsyncClient
from interpreter.mcp.server import IN_PROCESS_URL, serve_stdio
from interpreter.settings import Settings


async def serve(settings: Settings) -> None:
    """Serve one MCP client: with the service at ``INTERPRETER_URL``, or else with one in this process.

    Raises HostError, ConfigurationError, and what opening a service raises.
    """
    # Standard output is the protocol's alone; the libraries' word on every request would drown real warnings.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if url := os.environ.get("INTERPRETER_URL"):
        await serve_stdio(lambda: AsyncClient(url, settings.key))
        return
    os.umask(0o077)
    async with open_service(settings) as service:
        transport = httpx.ASGITransport(app=create_app(service), raise_app_exceptions=False)
        await serve_stdio(lambda: AsyncClient(IN_PROCESS_URL, settings.key, transport=transport))
