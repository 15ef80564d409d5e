"""The frames that host and guest exchange over vsock; both sides import this one module.

A frame is a 4-byte big-endian length and that many bytes of msgpack: ``[VERSION, kind, body]`` with a
``Kind`` and a map of text keys. Nothing here does I/O: ``encode`` gives bytes, ``FrameDecoder`` takes them.

Every stream that the host opens (to ``AGENT_PORT`` in the guest) begins with one OPEN frame that names the
service; the guest answers OK or ERROR. The guest dials the host (``CONTROL_PORT``) once per restore; that
stream carries the CALL, OK, ERROR and EVENT frames of the control service.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]

VERSION: Final = 1
"""The form of a frame, which stands in each."""
AGENT_VERSION: Final = 4
"""What is said in frames: the agent's services and operations, and how it meets the host. It tells the host first of
all. One more with every change that the host must know of, which then speaks both for a while
(`interpreter.kernel.versions`)."""
MAX_FRAME: Final = 256 * 1024 * 1024
"""Longest frame that the guest takes, in bytes. A longer one is an error: the stream is closed."""
MAX_CONTROL: Final = 4 * 1024 * 1024
"""Longest frame that the host takes from the guest: a page of a folder has fewer bytes,"""
MAX_MESSAGE: Final = 32 * 1024 * 1024
"""and a kernel message may have so many."""

_MAX_ITEMS: Final = 50_000
"""Items of all lists and maps in a frame together."""

HOST_CID: Final = 2
CONTROL_PORT: Final = 1
"""The host listens here; below 1024, so that only root in the guest can pose as the agent."""
AGENT_PORT: Final = 1
"""The guest's agent listens here."""

STDIN_WINDOW: Final = 256 * 1024
"""Bytes of input for a command that may be under way, not yet taken by it."""

CONTEXT_NAME: Final = r"[A-Za-z0-9_-]{1,64}"
"""What a context may be called: all of the name, as a regular expression."""

CHANNELS: Final = ("shell", "control", "iopub", "stdin", "hb")


# msgpack tells no types of its own.
_pack = cast("Callable[..., bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
_unpack = cast("Callable[..., Any]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]
_UnpackError = cast("type[Exception]", msgpack.exceptions.UnpackException)


class Kind(enum.StrEnum):
    """What a frame is."""

    OPEN = "open"
    OK = "ok"
    ERROR = "error"
    CALL = "call"
    EVENT = "event"
    MESSAGE = "message"


class FrameError(ValueError):
    """The bytes are not a frame of this version."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. ``body`` holds only what msgpack has: numbers, text, bytes, lists and maps."""

    kind: Kind
    body: dict[str, Any] = field(default_factory=dict[str, Any])


def encode(frame: Frame, limit: int = MAX_FRAME) -> bytes:
    """Turn a frame into the bytes that go on the wire. Raises FrameError when it is too long."""
    payload = _pack([VERSION, str(frame.kind), frame.body], use_bin_type=True)
    if len(payload) > limit:
        raise FrameError(f"a frame of {len(payload)} bytes is over the limit of {limit}")
    return len(payload).to_bytes(4, "big") + payload


def decode(payload: bytes | bytearray | memoryview) -> Frame:
    """Turn the payload of one frame (without its length) into a Frame. Raises FrameError."""
    left = _MAX_ITEMS

    def count(items: Any) -> Any:
        nonlocal left
        left -= len(items)
        if left < 0:
            raise ValueError("too many items")
        return items

    try:
        # Of bytes there can be many, of anything else not: each item takes far more memory here than on the wire.
        value: Any = _unpack(
            payload,
            raw=False,
            strict_map_key=True,
            list_hook=count,
            object_hook=count,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except (ValueError, TypeError, _UnpackError, RecursionError) as error:
        raise FrameError(f"not msgpack: {error}") from None
    match value:
        case [version, str(kind), body] if version == VERSION and isinstance(body, dict):
            entries = cast("dict[Any, Any]", body)
            if not all(isinstance(key, str) for key in entries):
                raise FrameError("a frame's body has a key that is not text")
            try:
                return Frame(Kind(kind), entries)
            except ValueError:
                raise FrameError(f"unknown kind of frame {kind[:40]!r}") from None
        case [version, _, _] if version != VERSION:
            raise FrameError(f"frame version {version!r}, but this side speaks {VERSION}")
        case _:
            raise FrameError("a frame is a list of version, kind and body")


class FrameDecoder:
    """Bytes in, frames out: feed what arrived, iterate over what is whole."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Frame]:
        """Take the next bytes and yield each frame that they complete. Raises FrameError."""
        self._buffer += data
        start = 0
        try:
            while (frame_end := self._frame_end(start)) is not None:
                # The view must be released before the buffer can shrink.
                with memoryview(self._buffer)[start + 4 : frame_end] as payload:
                    frame = decode(payload)
                start = frame_end
                yield frame
        finally:
            del self._buffer[:start]

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet; 0 between frames."""
        return len(self._buffer)

    def _frame_end(self, start: int) -> int | None:
        if len(self._buffer) - start < 4:
            return None
        length = int.from_bytes(self._buffer[start : start + 4], "big")
        if length > self._limit:
            raise FrameError(f"a frame of {length} bytes is over the limit of {self._limit}")
        end = start + 4 + length
        return end if len(self._buffer) >= end else None
