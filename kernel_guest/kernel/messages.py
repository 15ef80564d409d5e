"""What a kernel sends, made such that it can pass: its text is UTF-8, and long text comes in pieces."""

import json
from typing import Any, cast

from jupyter_client.jsonutil import json_clean, json_default
from jupyter_client.session import Session

STREAM_PIECE = 1_000_000
"""The most characters of standard output or error in one message; a longer one could be over what may pass at once."""


def pack(value: object) -> bytes:
    """A part of a message as JSON.

    Python's text may hold halves of UTF-16 pairs, which UTF-8 has no form for: two that fit become their character,
    one alone becomes U+FFFD. A stock kernel loses the message.
    """
    try:
        text = _dumps(value)
    except (TypeError, ValueError):
        text = _dumps(json_clean(value))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


class KernelSession(Session):
    """Jupyter's session as the kernel uses it to send."""

    def send(self, stream: Any, msg_or_type: Any, *arguments: Any, **options: Any) -> Any:
        """Send a message; long text to a stream in several."""
        # Its types lack some.
        sending: Any = super()
        text = _stream_text(msg_or_type)
        if len(text) <= STREAM_PIECE:
            return sending.send(stream, msg_or_type, *arguments, **options)
        content = cast("dict[str, Any]", msg_or_type["content"])
        for start in range(0, len(text), STREAM_PIECE):
            piece = {**content, "text": text[start : start + STREAM_PIECE]}
            message = sending.msg("stream", piece, parent=msg_or_type["parent_header"])
            sending.send(stream, message, *arguments, **options)
        return msg_or_type


def _stream_text(message: Any) -> str:
    match message:
        case {"msg_type": "stream", "content": {"text": str(text)}}:
            return text
        case _:
            return ""


def _dumps(value: object) -> str:
    return json.dumps(value, default=json_default, ensure_ascii=False, allow_nan=False)
