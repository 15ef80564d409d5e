"""The HTTP server around the application, set up for streams, WebSockets and clients that mean no good."""

import contextlib
from collections.abc import Generator
from typing import Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from interpreter.settings import Settings

_KEEP_ALIVE_SECONDS: Final = 75
_CLOSE_SECONDS: Final = 3
_PING_SECONDS: Final = 30.0
"""Proxies cut what is silent for a minute."""
_ABORT_SECONDS: Final = 30.0
_TUNNELS: Final = "/v1/"
_PONG_SECONDS: Final = 90.0
"""A client that is busy, or that has much output under way to it, answers late."""


class _Server(uvicorn.Server):
    """uvicorn's server that leaves signals alone: they are the service's, which drains first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Capture none."""
        yield


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


def new_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """A server that serves until ``should_exit`` is set."""
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
    return _Server(config)
