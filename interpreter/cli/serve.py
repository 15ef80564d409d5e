"""``interpreter serve``: the service in this process, until a signal ends it."""

import asyncio
import gc
import os
import signal
import socket

from rich.markup import escape

from interpreter.api.app import create_app, open_service
from interpreter.api.http.descriptors import raise_limit, room_for_connections
from interpreter.api.http.server import new_server
from interpreter.cli.heap import return_large_buffers
from interpreter.cli.logs import configure as configure_logging
from interpreter.cli.terminal import err
from interpreter.errors import ConfigurationError
from interpreter.loopback import is_loopback
from interpreter.mcp.server import mount_mcp
from interpreter.settings import Settings
from interpreter.vm.priority import put_service_first

_BACKLOG = 2048


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; then drain. Raises ConfigurationError, HostError, and what opening raises."""
    if settings.key is None and not is_loopback(settings.host):
        raise ConfigurationError(
            f"without a key the service listens on this machine only, not on {settings.host}",
            hint="Set INTERPRETER_API_KEY",
        )
    put_service_first()
    return_large_buffers()
    # Whatever makes a file from here on, a library for one, makes it for the service's user alone.
    os.umask(0o077)
    connections = room_for_connections(settings, raise_limit())
    loop = asyncio.get_running_loop()
    asked_to_end = asyncio.Event()
    configure_logging()
    with _listen(settings) as listener:
        async with open_service(settings) as service:
            # Not before the state folder is open: until then a signal ends the command at once.
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, asked_to_end.set)
            app = create_app(service)
            async with mount_mcp(app):
                # Again: the mcp package sets up logging of its own.
                configure_logging()
                server = new_server(app, settings, connections)
                serving = asyncio.create_task(server.serve([listener]))
                # What is there now stays: collections need not look at it again.
                gc.collect()
                gc.freeze()
                _announce(settings, listener)
                ending = asyncio.create_task(asked_to_end.wait())
                await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
                # While it still answers: clients get the results of what ends in time.
                await service.sessions.drain()
                server.should_exit = True
            await serving
    err.print("All sessions have ended.")


def _announce(settings: Settings, listener: socket.socket) -> None:
    address, port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    err.print(f"interpreter serves on [bold]http://{escape(shown)}:{port}[/] (documentation: /docs, MCP: /mcp)")
    if settings.key is None:
        err.print(
            "[yellow]warning:[/] INTERPRETER_API_KEY is not set: every program of this machine may use the service, "
            "and no other machine can reach it"
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With the protocol named, asyncio switches off Nagle's algorithm on what is accepted: else answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}",
            hint="Set INTERPRETER_HOST and INTERPRETER_PORT",
        ) from None
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener
