"""Kernel messages in WebSocket frames: both forms hold what was put in, and what is no message is refused."""

import json
import struct
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import GuestMisbehaved, InvalidRequest, TooLarge
from interpreter.kernel.message import Codec, RawMessage
from interpreter.kernel.websocket import V1, ClientMessage, pack, packing, unpack, unpacking

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
contents = st.dictionaries(st.text(), values, max_size=4)
headers = st.builds(
    lambda more, msg_id, msg_type: {**more, "msg_id": msg_id, "msg_type": msg_type},
    contents,
    st.text(min_size=1),
    st.text(min_size=1),
)
all_buffers = st.lists(st.binary(max_size=100), max_size=4)
client_channels = st.sampled_from(["shell", "control", "stdin"])


def dumped(*parts: Any) -> list[bytes]:
    return [json.dumps(part).encode() for part in parts]


def kernels(parts: list[bytes]) -> RawMessage:
    codec = Codec(b"key", "session")
    return codec.verify(codec.signed(parts))


@given(client_channels, headers, contents, contents, contents, all_buffers)
def test_a_clients_message_passes_byte_for_byte_in_v1(
    channel: str, header: Any, parent: Any, metadata: Any, content: Any, buffers: list[bytes]
) -> None:
    pieces = [channel.encode(), *dumped(header, parent, metadata, content), *buffers]
    offsets = [8 * (len(pieces) + 2)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    frame = struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(pieces)
    assert unpack(V1, frame) == ClientMessage(channel, header["msg_type"], pieces[1:])


@given(client_channels, headers, contents, contents, contents, all_buffers)
def test_a_clients_message_means_the_same_in_the_default_form(
    channel: str, header: Any, parent: Any, metadata: Any, content: Any, buffers: list[bytes]
) -> None:
    message = {"channel": channel, "header": header, "parent_header": parent, "metadata": metadata, "content": content}
    text = json.dumps({**message, "buffers": []})
    frame: str | bytes = text
    if buffers:
        pieces = [text.encode(), *buffers]
        offsets = [4 * (len(pieces) + 1)]
        for piece in pieces[:-1]:
            offsets.append(offsets[-1] + len(piece))
        frame = struct.pack(f">{len(offsets) + 1}I", len(offsets), *offsets) + b"".join(pieces)
    unpacked = unpack("", frame)
    assert (unpacked.channel, unpacked.msg_type) == (channel, header["msg_type"])
    assert [json.loads(part) for part in unpacked.parts[:4]] == [header, parent, metadata, content]
    assert unpacked.parts[4:] == buffers


@given(st.sampled_from(["shell", "iopub"]), headers, contents, contents, contents, all_buffers)
def test_a_kernels_message_comes_out_as_it_went_in(
    channel: str, header: Any, parent: Any, metadata: Any, content: Any, buffers: list[bytes]
) -> None:
    parts = [*dumped(header, parent, metadata, content), *buffers]
    frame = pack(V1, channel, kernels(parts))
    assert isinstance(frame, bytes)
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    assert offsets[0] == 8 * (count + 1)
    assert offsets[-1] == len(frame)
    assert [frame[a:b] for a, b in zip(offsets, offsets[1:], strict=False)] == [channel.encode(), *parts]  # noqa: RUF007
    frame = pack("", channel, kernels(parts))
    if isinstance(frame, bytes):
        (count,) = struct.unpack_from(">I", frame)
        offsets = [*struct.unpack_from(f">{count}I", frame, 4), len(frame)]
        text, *rest = [frame[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]  # noqa: RUF007
        assert rest == buffers
        frame = text.decode()
    else:
        assert not buffers
    told = json.loads(frame)
    assert (told["channel"], told["msg_id"], told["msg_type"]) == (channel, header["msg_id"], header["msg_type"])
    assert [told[key] for key in ("header", "parent_header", "metadata", "content")] == [
        *(header, parent, metadata, content)
    ]


@given(st.binary(max_size=200) | st.text(max_size=200), st.sampled_from(["", V1]))
def test_what_is_no_message_is_refused_and_nothing_else_happens(payload: str | bytes, protocol: Any) -> None:
    with pytest.raises(InvalidRequest):
        unpack(protocol, payload)


@given(headers, all_buffers, st.data())
def test_a_frame_with_one_byte_changed_is_refused_or_read(
    header: Any, buffers: list[bytes], data: st.DataObject
) -> None:
    frame = pack(V1, "shell", kernels([*dumped(header, {}, {}, {}), *buffers]))
    assert isinstance(frame, bytes)
    place = data.draw(st.integers(0, len(frame) - 1))
    changed = bytearray(frame)
    changed[place] ^= data.draw(st.integers(1, 255))
    try:
        unpack(V1, bytes(changed))
    except InvalidRequest:
        return


def test_buffers_are_left_out_when_told() -> None:
    message = kernels([*dumped({"msg_id": "1", "msg_type": "comm_msg"}, {}, {}, {"n": 1}), b"\x85"])
    frame = pack("", "iopub", message, buffers=False)
    assert isinstance(frame, str)
    assert json.loads(frame)["buffers"] == []


def test_a_number_keeps_the_form_that_the_kernel_gave_it() -> None:
    parts = [b'{"msg_id": "1", "msg_type": "x"}', b"{}", b"{}", b'{"n": 1.50, "big": 123456789012345678901234567890}']
    frame = pack("", "iopub", kernels(parts))
    assert isinstance(frame, str)
    assert '{"n": 1.50, "big": 123456789012345678901234567890}' in frame


def test_half_a_surrogate_pair_of_a_client_passes() -> None:
    text = '{"channel": "shell", "header": {"msg_id": "1", "msg_type": "x"}, "content": {"code": "\\ud83d"}}'
    assert json.loads(unpack("", text).parts[3]) == {"code": "\ud83d"}


@pytest.mark.parametrize("part", [b"{", b"[]", b"1", b'"x"', b'{"a": 1}, "channel": {"a": 2}', b"[" * 50])
def test_a_kernels_message_that_is_no_json_is_not_passed_in_the_default_form(part: bytes) -> None:
    with pytest.raises(GuestMisbehaved):
        pack("", "iopub", kernels([b'{"msg_id": "1", "msg_type": "x"}', b"{}", b"{}", part]))


@pytest.mark.parametrize("part", [b"[" * 100_000, b'{"a": [' + b"0," * 300_000 + b"0]}"])
def test_what_is_too_much_to_be_parsed_passes_in_v1_alone(part: bytes) -> None:
    parts = [b'{"msg_id": "1", "msg_type": "x"}', b"{}", b"{}", part]
    assert part in cast("bytes", pack(V1, "iopub", kernels(parts)))
    with pytest.raises(TooLarge):
        pack("", "iopub", kernels(parts))


@pytest.mark.parametrize("protocol", ["", V1])
def test_a_clients_message_that_is_too_much_is_refused(protocol: Any) -> None:
    header = b'{"msg_id": "1", "msg_type": "x"}'
    parts = [header, b"{}", b"{}", b'{"a": [' + b"{}," * 300_000 + b"{}]}"]
    text = (
        pack(V1, "shell", kernels(parts)) if protocol else b'{"header": ' + header + b', "content": ' + parts[3] + b"}"
    )
    with pytest.raises(TooLarge):
        unpack(protocol, text if protocol else cast("bytes", text).decode())


@pytest.mark.parametrize("protocol", ["", V1])
@pytest.mark.parametrize(("length", "is_long"), [(1000, False), (3_000_000, True)], ids=["short", "long"])
def test_long_messages_are_taken_apart_and_put_together_in_steps(protocol: Any, length: int, is_long: bool) -> None:
    header, content = {"msg_id": "1", "msg_type": "execute_request"}, {"code": '"a",' * (length // 4)}
    message = kernels(dumped(header, {}, {}, content))
    assert (len(list(packing(protocol, "shell", message))) > 1) == (is_long and protocol == "")
    payload = pack(protocol, "shell", message)
    assert (len(list(unpacking(protocol, payload))) > 1) == is_long
    assert json.loads(unpack(protocol, payload).parts[3]) == content
