"""What all that is done with one session shares: its id, and how its requests are addressed."""

from collections.abc import Mapping
from typing import Any

from interpreter.client.transport import Call, Transport, session_path


class SessionCalls:
    """A session as far as requests go."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self.id = session_id
        self._transport = transport
        self._path = session_path(session_id)

    def _call(
        self,
        method: str,
        *parts: str,
        params: Mapping[str, str | int | float | bool | None] | None = None,
        body: Mapping[str, Any] | None = None,
        seconds: float = 0.0,
    ) -> Call:
        return Call(method, session_path(self.id, *parts), params or {}, body, seconds=seconds)
