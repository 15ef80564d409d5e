"""Jupyter messages and their form on the wire, without I/O.

The source is jupyter_client's "Messaging in Jupyter", protocol 5.4, "The Wire Protocol": ZeroMQ parts
``[identities..., <IDS|MSG>, signature, header, parent_header, metadata, content, buffers...]``.
"""

import hashlib
import hmac
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from interpreter.errors import GuestMisbehaved

DELIMITER: Final = b"<IDS|MSG>"
PROTOCOL_VERSION: Final = "5.4"
MUCH: Final = 1024 * 1024
"""Messages of so many bytes or more are taken apart in a thread: others must not wait for them."""
_SIGNED_PARTS: Final = 4
_MAX_HEADER: Final = 1024 * 1024


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

    def content(self) -> dict[str, Any]:
        """What the message says. Raises GuestMisbehaved when that is no JSON object."""
        return _load(self.parts[3])

    def whole(self) -> Message:
        """All of it taken apart. Raises GuestMisbehaved."""
        _, _, metadata, content = self.parts[:_SIGNED_PARTS]
        return Message(self.header, self.parent, _load(metadata), _load(content), self.parts[_SIGNED_PARTS:])


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

    def notice(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any]) -> RawMessage:
        """A message to clients that does not come from the kernel, about it."""
        message = self.request(msg_type, content)
        parts = [_dump(part) for part in (message.header.model_dump(), parent, {}, content)]
        return RawMessage(message.header, parent, parts)

    def serialise(self, message: Message) -> list[bytes]:
        """The message as ZeroMQ parts, without identities."""
        signed = [
            _dump(part)
            for part in (message.header.model_dump(), message.parent_header, message.metadata, message.content)
        ]
        return self.signed([*signed, *message.buffers])

    def signed(self, parts: Sequence[bytes]) -> list[bytes]:
        """Header, parent header, metadata, content and buffers as ZeroMQ parts, without identities."""
        return [DELIMITER, _signature(self._key, parts[:_SIGNED_PARTS]), *parts]

    def parse(self, parts: Sequence[bytes]) -> Message:
        """Check the signature and take the message apart. Raises GuestMisbehaved for anything that is not one."""
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
        if max(len(signed[0]), len(signed[1])) > _MAX_HEADER:
            raise GuestMisbehaved("a kernel message has a header that is too long")
        if not any(hmac.compare_digest(signature, _signature(key, signed)) for key in self._accepted):
            raise GuestMisbehaved("a kernel message has a wrong signature")
        header, parent = _load(signed[0]), _load(signed[1])
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


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogateescape")


def _load(part: bytes) -> dict[str, Any]:
    try:
        # A kernel writes what was no UTF-8 in the first place (a file's name) as it was.
        text = part.decode("utf-8", "replace")
        value: Any = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            # Half a surrogate pair is no text: nothing after this could write it down.
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise GuestMisbehaved("a kernel message has a part that is not JSON") from None
    if not isinstance(value, dict):
        raise GuestMisbehaved("a kernel message has a part that is not a JSON object")
    return cast("dict[str, Any]", value)
