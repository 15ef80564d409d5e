"""Shows that the packet header has the layout of virtio 1.2, 5.10.6, for every value of every field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import GuestMisbehaved
from interpreter.vsock.packet import HEADER_SIZE, Header, Op, parse_header

U16, U32, U64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
HEADERS = st.builds(Header, U64, U64, U32, U32, U32, U16, U16, U32, U32, U32)


@given(HEADERS, st.binary(max_size=50), st.binary(max_size=50))
def test_a_header_comes_back_as_it_was_packed(header: Header, before: bytes, after: bytes) -> None:
    assert parse_header(before + header.pack() + after, len(before)) == header


def test_the_fields_lie_where_the_specification_puts_them() -> None:
    packed = Header(3, 2, 0x11, 0x22, 0x33, 1, Op.RW, 0x44, 0x55, 0x66).pack()
    assert packed == bytes.fromhex(
        "0300000000000000 0200000000000000 11000000 22000000 33000000 0100 0500 44000000 55000000 66000000"
    )


@given(st.binary(max_size=HEADER_SIZE - 1))
def test_a_short_packet_is_misbehaviour(data: bytes) -> None:
    with pytest.raises(GuestMisbehaved):
        parse_header(data)
