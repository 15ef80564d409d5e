"""Kernel messages in WebSocket frames, in both forms that Jupyter's front ends speak, without I/O.

The source is Jupyter Server's "WebSocket kernel wire protocols". In the default form a message is JSON text, or, when
it has buffers, binary: big-endian 32-bit count and offsets, the JSON, the buffers. ``v1.kernel.websocket.jupyter.org``
is always binary: little-endian 64-bit count and offsets, then channel, header, parent header, metadata, content and
buffers, so that a message's parts pass byte for byte.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal, cast

from interpreter.errors import GuestMisbehaved, InvalidRequest
from interpreter.kernel.limits import checking, parse_json
from interpreter.kernel.message import RawMessage
from interpreter.turns import MUCH, Steps, at_once

V1: Final = "v1.kernel.websocket.jupyter.org"
"""The name of the second form, as a WebSocket's subprotocol."""
CLIENT_CHANNELS: Final = frozenset({"shell", "control", "stdin"})
"""What clients may send on."""
_PARTS: Final = ("header", "parent_header", "metadata", "content")
_MAX_BUFFERS: Final = 10_000

Subprotocol = Literal["", "v1.kernel.websocket.jupyter.org"]


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """What a client sends: a channel, and header, parent header, metadata, content and buffers."""

    channel: str
    msg_type: str
    parts: list[bytes]


def pack(protocol: Subprotocol, channel: str, message: RawMessage, *, buffers: bool = True) -> str | bytes:
    """A kernel's message as a frame's payload. Without ``buffers`` they are left out.

    Raises GuestMisbehaved when the default form cannot carry it: a part is no JSON. TooLarge when it is too much.
    """
    return at_once(packing(protocol, channel, message, buffers=buffers))


def packing(protocol: Subprotocol, channel: str, message: RawMessage, *, buffers: bool = True) -> Steps[str | bytes]:
    """As `pack`, in steps."""
    parts = message.parts if buffers else message.parts[: len(_PARTS)]
    if protocol == V1:
        return _binary([channel.encode(), *parts], size=8, byteorder="little")
    text = yield from _json_text(channel, message)
    if len(parts) == len(_PARTS):
        return text
    return _binary([text.encode(), *parts[len(_PARTS) :]], size=4, byteorder="big")


def unpack(protocol: Subprotocol, payload: str | bytes) -> ClientMessage:
    """A client's message from a frame's payload. Raises InvalidRequest for anything that is not one, TooLarge."""
    return at_once(unpacking(protocol, payload))


def unpacking(protocol: Subprotocol, payload: str | bytes) -> Steps[ClientMessage]:
    """As `unpack`, in steps."""
    if protocol == V1:
        if isinstance(payload, str):
            raise InvalidRequest("frames of this subprotocol are binary")
        channel, *parts = _pieces(payload, size=8, byteorder="little", end=True)
        values: list[Any] = []
        try:
            for part in parts[: len(_PARTS)]:
                yield from checking(part, "the message")
                values.append(parse_json(part))
                if len(part) > MUCH:
                    yield
        except ValueError:
            raise InvalidRequest("a part of the message is not JSON") from None
        return _checked(channel.decode("utf-8", "replace"), values, parts)
    if isinstance(payload, str):
        return (yield from _from_json(payload.encode(), []))
    text, *buffers = _pieces(payload, size=4, byteorder="big", end=False)
    return (yield from _from_json(text, buffers))


def _json_text(channel: str, message: RawMessage) -> Steps[str]:
    # Put together from the kernel's own text: what a number or a string looks like stays as it is.
    yield from message.checking()
    if message.size > MUCH:
        yield
    texts = [part.decode("utf-8", "replace") for part in message.parts[: len(_PARTS)]]
    try:
        for part in message.parts[2 : len(_PARTS)]:
            if not isinstance(parse_json(part), dict):
                raise GuestMisbehaved("a kernel message has a part that is not a JSON object")
            if len(part) > MUCH:
                yield
    except ValueError:
        raise GuestMisbehaved("a kernel message has a part that is not JSON") from None
    about: dict[str, Any] = {"channel": channel, "buffers": []}
    about |= {"msg_id": message.header.msg_id, "msg_type": message.type}
    fields = [f'"{name}": {text}' for name, text in zip(_PARTS, texts, strict=True)]
    return f"{json.dumps(about)[:-1]}, {', '.join(fields)}}}"


def _from_json(text: bytes, buffers: list[bytes]) -> Steps[ClientMessage]:
    yield from checking(text, "the message")
    try:
        # Not as kernels' messages are parsed: half a surrogate pair can be written so, and nothing else would carry it.
        value: Any = json.loads(text)
        if not isinstance(value, dict):
            raise InvalidRequest("a message is a JSON object")
        message = cast("dict[str, Any]", value)
        values: list[object] = [message.get(name) or {} for name in _PARTS]
        parts: list[bytes] = []
        for value in values:
            if len(text) > MUCH:
                yield
            parts.append(json.dumps(value, allow_nan=False).encode())
    except ValueError as error:
        raise InvalidRequest(f"the message is not JSON: {str(error)[:200]}") from None
    return _checked(message.get("channel") or "shell", values, [*parts, *buffers])


def _checked(channel: object, values: Sequence[object], parts: list[bytes]) -> ClientMessage:
    if not isinstance(channel, str) or channel not in CLIENT_CHANNELS:
        raise InvalidRequest("a client's message is for shell, control or stdin")
    if len(values) < len(_PARTS):
        raise InvalidRequest("a message has header, parent header, metadata and content")
    if not all(isinstance(value, dict) for value in values):
        raise InvalidRequest("the parts of a message are JSON objects")
    header = cast("dict[str, Any]", values[0])
    if not all(isinstance(header.get(key), str) and header[key] for key in ("msg_id", "msg_type")):
        raise InvalidRequest("a message's header has msg_id and msg_type")
    return ClientMessage(channel, header["msg_type"], parts)


def _binary(pieces: Sequence[bytes], *, size: int, byteorder: Literal["little", "big"]) -> bytes:
    """Count, offsets, pieces. With 8-byte numbers the last offset is the end, as v1 has it."""
    count = len(pieces) + (1 if size == 8 else 0)
    offset = size * (count + 1)
    numbers = [count]
    for piece in pieces:
        numbers.append(offset)
        offset += len(piece)
    if size == 8:
        numbers.append(offset)
    return b"".join([*(number.to_bytes(size, byteorder) for number in numbers), *pieces])


def _pieces(payload: bytes, *, size: int, byteorder: Literal["little", "big"], end: bool) -> list[bytes]:
    count = int.from_bytes(payload[:size], byteorder)
    if not 1 + end <= count <= _MAX_BUFFERS or len(payload) < size * (count + 1):
        raise InvalidRequest("the frame's offsets are cut short")
    numbers = [int.from_bytes(payload[size * place : size * (place + 1)], byteorder) for place in range(1, count + 1)]
    if not end:
        numbers.append(len(payload))
    if numbers[0] != size * (count + 1) or numbers[-1] != len(payload) or sorted(numbers) != numbers:
        raise InvalidRequest("the frame's offsets are wrong")
    return [payload[start:stop] for start, stop in pairwise(numbers)]
