"""The header that every vsock packet starts with (virtio 1.2, section 5.10.6)."""

import enum
import struct
from typing import Final, NamedTuple

from interpreter.errors import GuestMisbehaved

HOST_CID: Final = 2
"""The host's context id (virtio 1.2, 5.10.4)."""

STREAM: Final = 1
"""The type of packets of stream sockets, the only one that this device offers."""

SHUTDOWN_RECEIVE: Final = 1
"""Flag of SHUTDOWN: the sender of this packet will receive no more data."""
SHUTDOWN_SEND: Final = 2
"""Flag of SHUTDOWN: the sender of this packet will send no more data."""
SHUTDOWN_BOTH: Final = SHUTDOWN_RECEIVE | SHUTDOWN_SEND

_HEADER: Final = struct.Struct("<QQIIIHHIII")
HEADER_SIZE: Final = _HEADER.size
pack_header: Final = _HEADER.pack
"""Pack the ten fields of ``Header``, in their order."""


class Op(enum.IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Header(NamedTuple):
    """One header. ``op`` and ``type`` are as they came: any number that fits."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    def pack(self) -> bytes:
        """The 44 bytes of this header. Raises struct.error when a field does not fit."""
        return pack_header(*self)


def parse_header(data: bytes | bytearray | memoryview, offset: int = 0) -> Header:
    """The header at ``offset``. Raises GuestMisbehaved when there are not 44 bytes."""
    if len(data) - offset < HEADER_SIZE:
        raise GuestMisbehaved(f"a packet of {max(len(data) - offset, 0)} bytes is shorter than its header")
    return Header._make(_HEADER.unpack_from(data, offset))
