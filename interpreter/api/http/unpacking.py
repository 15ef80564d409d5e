"""Bodies that come packed (Content-Encoding): unpacked piece by piece, as far as they are asked for."""

import asyncio
import zlib
from collections.abc import Iterator
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope

Coding = Literal["gzip", "deflate"]

CODINGS: Final = "gzip, deflate"
"""What is unpacked, as Accept-Encoding has it."""
_PIECE: Final = 256 * 1024
_NAMES: Final[dict[str, Coding]] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


class UnknownCoding(Exception):
    """A body is packed in a way, or several, that is not unpacked here."""


def coding_of(headers: Headers) -> Coding | None:
    """How a request's body is packed; None when it is not. Raises UnknownCoding."""
    named = ",".join(headers.getlist("content-encoding")).lower().split(",")
    codings = [name.strip() for name in named if name.strip() not in {"", "identity"}]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _NAMES:
        raise UnknownCoding(", ".join(codings)[:100])
    return _NAMES[codings[0]]


class Unpacker:
    """Packed bytes in, pieces out. Raises ValueError when they are not what they should be."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._stream = zlib.decompressobj(31) if coding == "gzip" else None
        self._head = b""
        self._fed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The next packed bytes; what they come to, in pieces that are made when they are asked for."""
        if self._stream is None:
            self._head += data
            if len(self._head) < 2:
                return
            data, self._stream = self._head, zlib.decompressobj(zlib.MAX_WBITS if _is_zlib(self._head) else -15)
        self._fed = self._fed or bool(data)
        while True:
            try:
                piece = self._stream.decompress(data, _PIECE)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            if piece:
                yield piece
            data = self._stream.unconsumed_tail
            if self._stream.eof and (more := self._stream.unused_data):
                # A gzip file may be several, one after the other.
                if self._coding != "gzip":
                    raise ValueError("something follows its end")
                data, self._stream = more, zlib.decompressobj(31)
            elif self._stream.eof or (not data and len(piece) < _PIECE):
                return

    def finish(self) -> None:
        """There is no more. Nothing at all is an empty body."""
        if self._head or self._fed:
            stream = self._stream
            if stream is None or not stream.eof:
                raise ValueError("it ends before its end")


def unpacked(scope: Scope, receive: Receive, coding: Coding) -> tuple[Scope, Receive]:
    """A request as if its body had not been packed. HTTPException is raised where it is read and cannot be unpacked."""
    gone = {b"content-encoding", b"content-length"}
    scope = {**scope, "headers": [(name, value) for name, value in scope["headers"] if name.lower() not in gone]}
    unpacker = Unpacker(coding)
    pieces: Iterator[bytes] = iter(())
    more = True
    ended = False

    async def receive_unpacked() -> Message:
        nonlocal pieces, more, ended
        while not ended:
            try:
                if piece := next(pieces, b""):
                    # Little that comes is much that is unpacked, and who reads it need not wait for anything.
                    await asyncio.sleep(0)
                    return {"type": "http.request", "body": piece, "more_body": True}
                if not more:
                    unpacker.finish()
                    ended = True
                    return {"type": "http.request", "body": b"", "more_body": False}
            except ValueError as error:
                raise HTTPException(400, f"the body is not {coding}, as its Content-Encoding says: {error}") from None
            message = await receive()
            if message["type"] != "http.request":
                return message
            pieces, more = unpacker.feed(message.get("body", b"")), message.get("more_body", False)
        return await receive()

    return scope, receive_unpacked


def _is_zlib(head: bytes) -> bool:
    # RFC 9110 has zlib's form; some clients send deflate's alone.
    return head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0
