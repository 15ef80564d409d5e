"""What a client has asked its kernel and was not answered yet, and what it is told when that kernel is gone.

Clients wait for a reply and for the kernel to be idle again (nbclient for ever). A kernel that died gives them neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from interpreter.kernel.limits import parse_json
from interpreter.kernel.memory import Room
from interpreter.kernel.message import Codec, RawMessage
from interpreter.kernel.websocket import ClientMessage

_MAX_PENDING: Final = 1000
_MAX_HEADER: Final = 16 * 1024
_MAX_CONTENT: Final = 64 * 1024
_NO_REPLY: Final = frozenset({"comm_open", "comm_msg", "comm_close"})
_REQUEST_BYTES: Final = 1000
"""What a request takes besides its header, about."""

Answer = tuple[str, RawMessage]
"""A channel and a message for it; those of iopub are for all clients of the kernel."""


@dataclass(slots=True)
class _Request:
    channel: str
    type: str
    header: dict[str, Any]
    size: int
    restart: bool
    is_shown: bool
    is_replied: bool
    is_begun: bool = False
    is_idle: bool = False


class Pending:
    """The requests of one client. Of more than a thousand the later ones are not known; ``room`` is shared."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._requests: dict[str, _Request] = {}

    def sent(self, message: ClientMessage) -> None:
        """The client asks."""
        header = message.parts[0]
        size = len(header) + _REQUEST_BYTES
        known = len(self._requests) < _MAX_PENDING and len(header) <= _MAX_HEADER and self._room.fits(size)
        if message.channel == "stdin" or not known:
            return
        about: dict[str, Any] = parse_json(header)
        content: dict[str, Any] = parse_json(message.parts[3]) if len(message.parts[3]) <= _MAX_CONTENT else {}
        request = _Request(
            message.channel,
            message.msg_type,
            about,
            size,
            restart=bool(content.get("restart")),
            is_shown=message.msg_type == "execute_request" and not content.get("silent"),
            is_replied=message.msg_type in _NO_REPLY,
        )
        self._forget(about["msg_id"])
        self._room.take(size)
        self._requests[about["msg_id"]] = request

    def replied(self, msg_id: str) -> None:
        """The kernel has replied to a request."""
        if request := self._requests.get(msg_id):
            request.is_replied = True
            self._forget_answered(msg_id, request)

    def noted(self, msg_id: str, state: str) -> None:
        """The kernel has begun with a request, or ended its work on it."""
        if request := self._requests.get(msg_id):
            request.is_begun = request.is_begun or state == "busy"
            request.is_idle = state == "idle"
            self._forget_answered(msg_id, request)

    def answers(self, codec: Codec, why: str) -> Iterator[Answer]:
        """What the kernel still owes, in its place: for each request a reply, and that it is idle. Once."""
        while self._requests:
            request = self._forget(next(iter(self._requests)))
            if request is not None:
                yield from _answers(request, codec, why)

    def clear(self) -> None:
        """Nobody waits any more."""
        while self._requests:
            self._forget(next(iter(self._requests)))

    def _forget_answered(self, msg_id: str, request: _Request) -> None:
        if request.is_replied and request.is_idle:
            self._forget(msg_id)

    def _forget(self, msg_id: str) -> _Request | None:
        request = self._requests.pop(msg_id, None)
        if request is not None:
            self._room.give_back(request.size)
        return request


def _answers(request: _Request, codec: Codec, why: str) -> Iterator[Answer]:
    error = {"ename": "KernelDied", "evalue": why, "traceback": [f"KernelDied: {why}"]}

    def notice(msg_type: str, content: dict[str, Any]) -> RawMessage:
        return codec.notice(msg_type, content, request.header)

    if request.is_shown and request.is_begun and not request.is_idle and not request.is_replied:
        yield "iopub", notice("error", error)
    if not request.is_replied:
        content: dict[str, Any] = {"status": "error", **error}
        if request.type == "execute_request":
            content |= {"execution_count": None, "user_expressions": {}, "payload": []}
        elif request.type == "shutdown_request":
            # That is what it asked for.
            content = {"status": "ok", "restart": request.restart}
        yield request.channel, notice(f"{request.type.removesuffix('_request')}_reply", content)
    if not request.is_idle:
        yield "iopub", notice("status", {"execution_state": "idle"})
