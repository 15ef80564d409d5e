"""Jupyter messages and their form on the wire, without I/O.

The source is jupyter_client's "Messaging in Jupyter", protocol 5.4, "The Wire Protocol": ZeroMQ parts
``[identities..., <IDS|MSG>, signature, header, parent_header, metadata, content, buffers...]``.
"""

import hashlib
import hmac
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from interpreter.errors import GuestMisbehaved, TooLarge
from interpreter.kernel.limits import check_json, checking, dump_json, parse_json
from interpreter.turns import Steps, at_once

DELIMITER: Final = b"<IDS|MSG>"
PROTOCOL_VERSION: Final = "5.4"
LEFT_OUT: Final = "left_out"
"""True in the metadata of what is told in place of an output that is too much."""
_SIGNED_PARTS: Final = 4
_MAX_HEADER: Final = 64 * 1024
_MAX_HEADER_VALUES: Final = 1000


class Header(BaseModel):
    """A message's header. Keys that this version does not know are kept (``subshell_id`` is one)."""

    model_config = ConfigDict(extra="allow")

    msg_id: str
    msg_type: str
    session: str = ""
    username: str = ""
    date: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``parent_id`` is the parent header's ``msg_id``; empty when it has no parent."""

    header: Header
    parent_header: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: list[bytes] = field(default_factory=list[bytes])

    @property
    def type(self) -> str:
        """The header's ``msg_type``."""
        return self.header.msg_type

    @property
    def parent_id(self) -> str:
        """Which request this belongs to; empty when to none."""
        return _text(self.parent_header, "msg_id")


@dataclass(frozen=True, slots=True)
class RawMessage:
    """A message of which only the header was taken apart, so that the rest passes byte for byte.

    ``parts`` are header, parent header, metadata, content, and any number of buffers.
    """

    header: Header
    parent: dict[str, Any]
    parts: list[bytes]

    @property
    def type(self) -> str:
        """The header's ``msg_type``."""
        return self.header.msg_type

    @property
    def parent_id(self) -> str:
        """Which request this belongs to; empty when to none."""
        return _text(self.parent, "msg_id")

    @property
    def parent_type(self) -> str:
        """What that request was; empty when it is not told."""
        return _text(self.parent, "msg_type")

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(map(len, self.parts))

    def check(self) -> None:
        """Raises TooLarge when it is too much to be taken apart."""
        at_once(self.checking())

    def checking(self) -> Steps[None]:
        """As `check`, in steps."""
        for part in self.parts[2:_SIGNED_PARTS]:
            yield from checking(part, f"the {self.type[:80]}")

    def content(self) -> dict[str, Any]:
        """What the message says. Raises TooLarge, and GuestMisbehaved when that is no JSON object."""
        check_json(self.parts[3], f"the {self.type[:80]}")
        return _object(self.parts[3])

    def whole(self) -> Message:
        """All of it taken apart. Raises TooLarge, GuestMisbehaved."""
        self.check()
        return self.checked()

    def checked(self) -> Message:
        """As `whole`, when `check` has been called. Raises GuestMisbehaved."""
        _, _, metadata, content = self.parts[:_SIGNED_PARTS]
        return Message(self.header, self.parent, _object(metadata), _object(content), self.parts[_SIGNED_PARTS:])


class Codec:
    """Signs and serialises messages for one kernel, and checks those that come from it."""

    def __init__(self, key: bytes, session: str) -> None:
        self._key = key
        self._accepted = [key]
        self._session = session

    @property
    def session(self) -> str:
        """The kernel's Jupyter session."""
        return self._session

    def accept(self, key: bytes) -> None:
        """Take messages that are signed with ``key``, besides those with the key of now."""
        self._accepted = [self._key, key]

    def sign_with(self, key: bytes) -> None:
        """Sign with another key. What the kernel had signed before that is still taken."""
        self._accepted = [key, self._key]
        self._key = key

    def request(self, msg_type: str, content: dict[str, Any], **header: str) -> Message:
        """A new message of ours, with an id that no other has. ``header`` adds keys such as ``subshell_id``."""
        return Message(
            Header(
                msg_id=uuid.uuid4().hex,
                msg_type=msg_type,
                session=self._session,
                username="interpreter",
                date=datetime.now(UTC).isoformat(),
                version=PROTOCOL_VERSION,
                **cast("dict[str, Any]", header),
            ),
            parent_header={},
            metadata={},
            content=content,
        )

    def notice(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any], **metadata: bool) -> RawMessage:
        """A message to clients that does not come from the kernel, about it."""
        message = self.request(msg_type, content)
        parts = [dump_json(part) for part in (message.header.model_dump(), parent, metadata, content)]
        return RawMessage(message.header, parent, parts)

    def left_out(self, message: RawMessage, why: str) -> RawMessage:
        """What clients are told in place of an output that is too much."""
        return self._left_out(message.parent, why)

    def oversized(self, parent: bytes, size: int) -> RawMessage:
        """The same for one of ``size`` bytes that did not come here at all, but its parent header did."""
        try:
            return self._left_out(_header(parent), f"it has {size} bytes")
        except GuestMisbehaved:
            return self._left_out({}, f"it has {size} bytes")

    def _left_out(self, parent: dict[str, Any], why: str) -> RawMessage:
        text = f"[An output was left out: {why}.]\n"
        return self.notice("stream", {"name": "stderr", "text": text}, parent, **{LEFT_OUT: True})

    def serialise(self, message: Message) -> list[bytes]:
        """The message as ZeroMQ parts, without identities."""
        signed = [
            dump_json(part)
            for part in (message.header.model_dump(), message.parent_header, message.metadata, message.content)
        ]
        return self.signed([*signed, *message.buffers])

    def signed(self, parts: Sequence[bytes]) -> list[bytes]:
        """Header, parent header, metadata, content and buffers as ZeroMQ parts, without identities."""
        return [DELIMITER, _signature(self._key, parts[:_SIGNED_PARTS]), *parts]

    def parse(self, parts: Sequence[bytes]) -> Message:
        """Check the signature and take the message apart. Raises TooLarge, GuestMisbehaved."""
        return self.verify(parts).whole()

    def verify(self, parts: Sequence[bytes]) -> RawMessage:
        """Check the signature, and look only at the header. Raises GuestMisbehaved for anything that is no message."""
        try:
            start = list(parts).index(DELIMITER) + 1
        except ValueError:
            raise GuestMisbehaved("a kernel message has no delimiter") from None
        signature, *rest = parts[start:] or [b""]
        signed = rest[:_SIGNED_PARTS]
        if len(signed) < _SIGNED_PARTS:
            raise GuestMisbehaved("a kernel message has too few parts")
        if not any(hmac.compare_digest(signature, _signature(key, signed)) for key in self._accepted):
            raise GuestMisbehaved("a kernel message has a wrong signature")
        header, parent = _header(signed[0]), _header(signed[1])
        try:
            return RawMessage(Header.model_validate(header), parent, rest)
        except ValidationError:
            raise GuestMisbehaved("a kernel message has a header that is not one") from None


def _signature(key: bytes, parts: Sequence[bytes]) -> bytes:
    if not key:
        return b""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(part)
    return digest.hexdigest().encode()


def _text(parent: dict[str, Any], key: str) -> str:
    value = parent.get(key, "")
    return value if isinstance(value, str) else ""


def _header(part: bytes) -> dict[str, Any]:
    try:
        check_json(part, "a kernel message's header", size=_MAX_HEADER, values=_MAX_HEADER_VALUES)
    except TooLarge as error:
        raise GuestMisbehaved(error.message) from None
    return _object(part)


def _object(part: bytes) -> dict[str, Any]:
    try:
        value = parse_json(part)
    except ValueError:
        raise GuestMisbehaved("a kernel message has a part that is not JSON") from None
    if not isinstance(value, dict):
        raise GuestMisbehaved("a kernel message has a part that is not a JSON object")
    return cast("dict[str, Any]", value)
