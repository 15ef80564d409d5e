"""Fuzz the packet header and the connections behind it: any packets, in any order, with any credit.

Run: ``python tests/fuzz/fuzz_packet.py -runs=100000``. Only GuestMisbehaved may come out, and what waits to be sent
stays within the device's bound. The guest is heard only while the device says that it has room for resets, as
on a real ring.
"""

import sys
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports():  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    from interpreter.errors import GuestMisbehaved
    from interpreter.vsock import device as device_module
    from interpreter.vsock.connection import DataReceived, EndOfStream, Requested
    from interpreter.vsock.device import DeviceProtocol
    from interpreter.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Header, parse_header

GUEST_CID = 3
PORT = 1
MAX_CONNECTIONS = 4
MAX_REPLIES = 8
# So few that an input of the size that the fuzzer makes can reach the bound.
device_module.MAX_REPLIES = MAX_REPLIES  # pyright: ignore[reportConstantRedefinition]


def handle(device: DeviceProtocol, choice: int) -> None:
    events, device.events = device.events, []
    for event in events:
        match event:
            case Requested():
                device.accept(event.connection)
            case DataReceived():
                device.consume(event.connection, len(event.data))
                device.write(event.connection, event.data)
            case EndOfStream():
                (device.close, device.shut, device.abort)[choice % 3](event.connection)
            case _:
                pass


def test_one(data: bytes) -> None:
    device = DeviceProtocol(GUEST_CID, window=256, max_connections=MAX_CONNECTIONS)
    device.listening.add(PORT)
    device.connect(PORT)
    position = 0
    try:
        while position < len(data):
            shape, position = data[position], position + 1
            header = parse_header(data, position)
            position += HEADER_SIZE
            payload = data[position : position + (shape & 63)]
            position += len(payload)
            if shape & 64:
                # Mostly packets that get past the first checks; the others try those.
                fields = header._asdict() | {"src_cid": GUEST_CID, "dst_cid": HOST_CID, "length": len(payload)}
                fields |= {"src_port": header.src_port % 3, "dst_port": PORT + (header.dst_port & 1 << 30)}
                fields |= {"type": STREAM, "op": header.op % 9}
                header = Header(**fields)
            if not device.replies_full:
                device.receive(header, payload)
                handle(device, shape)
            # A packet is answered by one reset at most, and what the host does about it resets a connection each.
            assert len(device._replies) <= MAX_REPLIES + MAX_CONNECTIONS
            if shape & 128:
                while size := device.next_packet(shape & 63, out := bytearray()):
                    assert size == len(out) <= HEADER_SIZE + 63
                    assert parse_header(out).length == size - HEADER_SIZE
                    handle(device, shape)
            assert len(device.connections) <= MAX_CONNECTIONS
    except GuestMisbehaved:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)  # pyright: ignore[reportUnknownMemberType]
    atheris.Fuzz()  # pyright: ignore[reportUnknownMemberType]
