"""Kernel messages: signed and parsed back byte for byte; whatever else comes from a guest is GuestMisbehaved."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import GuestMisbehaved
from interpreter.kernel.message import Codec

codec = Codec(b"key", "session")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4), st.lists(st.binary(max_size=100), max_size=3))
def test_a_message_comes_back_whole_with_its_buffers(content: dict[str, object], buffers: list[bytes]) -> None:
    message = codec.request("comm_msg", content, subshell_id="s1")
    message.buffers.extend(buffers)
    parsed = codec.parse([b"topic", b"identity", *codec.serialise(message)])
    assert parsed == message
    assert parsed.header.model_extra == {"subshell_id": "s1"}


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_arbitrary_parts_are_guest_misbehaved(parts: list[bytes]) -> None:
    with pytest.raises(GuestMisbehaved):
        codec.parse(parts)


@given(st.integers(2, 5), st.integers(0, 200), st.integers(1, 255))
def test_an_altered_part_breaks_the_signature(part: int, place: int, flip: int) -> None:
    parts = codec.serialise(codec.request("execute_request", {"code": "1"}))
    altered = bytearray(parts[part])
    altered[place % len(altered)] ^= flip
    parts[part] = bytes(altered)
    with pytest.raises(GuestMisbehaved, match="signature"):
        codec.parse(parts)


def test_another_key_is_another_signature() -> None:
    with pytest.raises(GuestMisbehaved, match="signature"):
        codec.parse(Codec(b"other", "session").serialise(codec.request("kernel_info_request", {})))


@pytest.mark.parametrize("header", [b"[]", b"1", b"{}", b'{"msg_id": 1, "msg_type": "x"}', b"[" * 5000])
def test_a_header_that_is_none_is_refused_also_when_it_is_signed(header: bytes) -> None:
    parts = [header, b"{}", b"{}", b"{}"]
    with pytest.raises(GuestMisbehaved):
        codec.parse(codec.signed(parts))


@pytest.mark.parametrize("text", [b'"\\ud800"', b'"a\\udcffb"', b'"\\uDFFF"', b'"\xff\xfe"'])
def test_text_that_is_half_a_character_becomes_text_that_can_be_written_down(text: bytes) -> None:
    header = b'{"msg_id": "m", "msg_type": "stream"}'
    parts = [header, b"{}", b"{}", b'{"text": ' + text + b"}"]
    message = codec.parse(codec.signed(parts))
    assert message.content["text"].encode()
    assert len(message.content["text"]) <= 4


def test_a_changed_key_signs_at_once_and_the_old_one_is_taken_for_what_was_under_way() -> None:
    old, new, other = (Codec(key, "s") for key in (b"old", b"new", b"other"))
    message = old.request("status", {})
    changing = Codec(b"old", "s")
    changing.accept(b"new")
    assert changing.serialise(message) == old.serialise(message)
    for codec in (old, new):
        assert changing.parse(codec.serialise(message)).type == "status"
    changing.sign_with(b"new")
    assert changing.serialise(message) == new.serialise(message)
    for codec in (old, new):
        assert changing.parse(codec.serialise(message)).type == "status"
    with pytest.raises(GuestMisbehaved):
        changing.parse(other.serialise(message))
