"""One HTTP connection, and the clients that hold one without using it: each thing that is waited for has a deadline."""

from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from interpreter.api.problems import ErrorBody, Problem

HEAD_SECONDS: Final = 10.0
"""From the connection, or a head's first byte, to its last."""
BODY_SECONDS: Final = 60.0
"""Without a byte of a body that is read."""
REST_SECONDS: Final = 5.0
"""For the rest of a body whose request was answered before its end, as a refused one is."""
CLOSE_SECONDS: Final = 30.0
"""For the client to take what was sent before the connection was closed."""


class HttpConnection(H11Protocol):
    """uvicorn's connection, with the deadlines that it lacks; `check` is to be called about once a second."""

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        now = self.loop.time()
        self.idle_since: float | None = now
        """Since when no request is under way; None while one is."""
        self._head_since: float | None = now
        self._data_at = now
        self._answered_at = now
        self._closing_since: float | None = None

    def data_received(self, data: bytes) -> None:
        """Called when bytes came."""
        self._data_at = self.loop.time()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self.idle_since = self._head_since = None
        elif self._head_since is None:
            self._head_since = self._data_at

    def on_response_complete(self) -> None:
        """Called when a request was answered."""
        self.idle_since = self._answered_at = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            # The beginning of the next head came with the last.
            self._head_since = self._answered_at

    def send_400_response(self, msg: str) -> None:
        """Called with what was wrong when bytes came that are no HTTP; the connection is closed. The body is ours."""
        hint = "In a URL all but ASCII is percent-encoded; curl does it with --url-query"
        error = ErrorBody(code="bad_request", message=msg.rstrip("."), hint=hint)
        body = Problem(error=error).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        events = h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def check(self, now: float) -> None:
        """Break it off when the client is late with what it has to do."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
            late = now - self._closing_since > CLOSE_SECONDS
        elif self._head_since is not None:
            late = now - self._head_since > HEAD_SECONDS
        elif self.conn.their_state is not h11.SEND_BODY:
            late = False
        elif self.cycle.response_complete:
            late = now - self._answered_at > REST_SECONDS
        else:
            # While nobody reads the body, or has asked for it, it is not the client who is late.
            waits = not self.flow.read_paused and not self.cycle.waiting_for_100_continue
            late = waits and now - self._data_at > BODY_SECONDS
        if late:
            self.transport.abort()
