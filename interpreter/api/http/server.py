"""The HTTP server around the application, set up for streams, WebSockets and clients that mean no good."""

import asyncio
import contextlib
import math
import resource
import socket
import time
from collections.abc import Generator
from operator import itemgetter
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from interpreter.api.http.connections import HttpConnection
from interpreter.api.http.descriptors import MAX_CONNECTIONS, RESERVE
from interpreter.settings import Settings

log = structlog.get_logger(__name__)

_KEEP_ALIVE_SECONDS: Final = 75
_CLOSE_SECONDS: Final = 3
_PING_SECONDS: Final = 30.0
"""Proxies cut what is silent for a minute."""
_ABORT_SECONDS: Final = 30.0
_FULL_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = 1.0
_TELL_SECONDS: Final = 60.0
_TUNNELS: Final = "/v1/"
_PONG_SECONDS: Final = 90.0
"""A client that is busy, or that has much output under way to it, answers late."""


class _Server(uvicorn.Server):
    """uvicorn's server that leaves signals alone (they are the service's, which drains first), and that takes no more
    connections than ``limit``, nor the last descriptors that the process may have."""

    def __init__(self, config: uvicorn.Config, limit: int) -> None:
        super().__init__(config)
        self._limit = limit
        self._accepting: list[asyncio.Task[None]] = []
        self._told_at = -math.inf

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called to begin."""
        # asyncio's own way of accepting, out of descriptors, writes as many tracebacks as its backlog is long.
        self.servers = []
        for listener in sockets or []:
            listener.listen(self.config.backlog)
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or []]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server. Raises what ended the accepting of connections."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpConnection):
                    connection.check(now)
        for task in self._accepting:
            if task.done():
                task.result()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called to end."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError as error:
                self._tell("no connection can be accepted", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            # The lowest free number is given: all below it are in use.
            if accepted.fileno() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE:
                accepted.close()
                self._tell("a connection was refused: the last descriptors are the sessions'", reserve=RESERVE)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                while len(self.server_state.connections) >= self._limit and not self._make_room():
                    self._tell("all connections are in use", limit=self._limit)
                    # It waits, and others in the system's queue. Nobody tells when a connection is gone.
                    await asyncio.sleep(_FULL_SECONDS)
                await loop.connect_accepted_socket(self._new_connection, accepted)
            except BaseException as error:
                accepted.close()
                if not isinstance(error, OSError):
                    raise

    def _new_connection(self) -> HttpConnection:
        return HttpConnection(self.config, self.server_state, self.lifespan.state)

    def _make_room(self) -> bool:
        """Close the connection that has done nothing for the longest time; False when all have requests under way."""
        idle = [
            (connection.idle_since, connection)
            for connection in self.server_state.connections
            if isinstance(connection, HttpConnection) and connection.idle_since is not None
        ]
        if not idle:
            return False
        _, longest = min(idle, key=itemgetter(0))
        self.server_state.connections.discard(longest)
        longest.transport.abort()
        return True

    def _tell(self, what: str, **about: object) -> None:
        # Once a minute: whoever causes it may do so thousands of times a second.
        now = time.monotonic()
        if now - self._told_at > _TELL_SECONDS:
            self._told_at = now
            log.warning(what, **about)


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, that also takes what Jupyter Server's gateway client makes of a browser's binary messages.

    It sends them on as text (2.21). Those begin with a NUL, which no JSON does, and are mostly no UTF-8.
    """

    def handle_connect(self, event: Request) -> None:
        """Called when an HTTP connection becomes a WebSocket."""
        if event.path.startswith(_TUNNELS):
            # What its client does not take waits, for as long as it likes; no pong of it comes meanwhile.
            self.ping_timeout = None
        super().handle_connect(event)

    def keepalive_timeout(self) -> None:
        """Called when no pong came."""
        super().keepalive_timeout()
        self._abort_later()

    async def run_asgi(self) -> None:
        """Called to serve it."""
        await super().run_asgi()
        self._abort_later()

    def _abort_later(self) -> None:
        # Else one whose client takes nothing, not even that it is closed, stays for good.
        self.loop.call_later(_ABORT_SECONDS, self.transport.abort)

    def send_receive_event_to_app(self) -> None:
        """Called when a message is complete."""
        if self.curr_msg_data_type == "text" and self.frames[0][:1] == b"\0":
            self.curr_msg_data_type = "bytes"
        super().send_receive_event_to_app()


def new_server(app: FastAPI, settings: Settings, connections: int = MAX_CONNECTIONS) -> uvicorn.Server:
    """A server that serves until ``should_exit`` is set, for as many connections at once."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        # The parser that bounds a request's head; the faster one would take one of any length into memory.
        http="h11",
        ws=_WebSocket,
        ws_max_size=settings.message_limit,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PONG_SECONDS,
        # Kernels and front ends are near each other: to pack what they say would only take time.
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        # Streams of events would hold the service up for as long as their clients like.
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        server_header=False,
        # Who calls is who is connected: nobody else's word is taken for it.
        proxy_headers=False,
    )
    return _Server(config, connections)
