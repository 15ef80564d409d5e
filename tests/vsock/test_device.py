"""Shows, with packets alone, that connections keep to virtio 1.2, 5.10.6: credit in both directions, shutdown, reset;
that the guest can make the device hold only so much; and what each kind of misbehaving packet leads to."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import GuestMisbehaved, VsockConnectError
from interpreter.vsock.connection import (
    RECEIVED,
    Closed,
    Connection,
    DataReceived,
    EndOfStream,
    Established,
    Event,
    Requested,
    ShutdownSent,
    State,
)
from interpreter.vsock.device import MAX_REPLIES, DeviceProtocol
from interpreter.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Header, Op, parse_header

from .guest import GUEST_CID

PORT, PEER = 1000, 7
WINDOW = 64 * 1024
BUFFER = 4096


def new_device(max_connections: int = 8) -> DeviceProtocol:
    device = DeviceProtocol(GUEST_CID, window=WINDOW, max_connections=max_connections)
    device.listening.add(PORT)
    return device


def sent(device: DeviceProtocol, capacity: int = BUFFER) -> Iterator[tuple[Header, bytes]]:
    """The packets that go out, each checked for what all have in common."""
    out = bytearray()
    while size := device.next_packet(capacity, out):
        assert size == len(out)
        header = parse_header(out)
        assert (header.src_cid, header.dst_cid, header.type) == (HOST_CID, GUEST_CID, STREAM)
        assert size == HEADER_SIZE + header.length <= HEADER_SIZE + capacity
        yield header, bytes(out[HEADER_SIZE:])
        out.clear()
    assert not device.wants_to_send


def ops(device: DeviceProtocol) -> list[Op]:
    return [Op(header.op) for header, _ in sent(device)]


def taken(device: DeviceProtocol) -> list[Event]:
    events, device.events = device.events, []
    return events


def packet(
    device: DeviceProtocol,
    op: int,
    payload: bytes = b"",
    *,
    peer: int = PEER,
    port: int = PORT,
    flags: int = 0,
    buf_alloc: int = WINDOW,
    fwd_cnt: int = 0,
    kind: int = STREAM,
) -> None:
    header = Header(GUEST_CID, HOST_CID, peer, port, len(payload), kind, op, flags, buf_alloc, fwd_cnt)
    device.receive(header, payload)


def accepted(device: DeviceProtocol, peer: int = PEER, buf_alloc: int = WINDOW) -> Connection:
    packet(device, Op.REQUEST, peer=peer, buf_alloc=buf_alloc)
    (event,) = taken(device)
    assert isinstance(event, Requested)
    device.accept(event.connection)
    assert ops(device) == [Op.RESPONSE]
    return event.connection


def test_the_guest_dials_the_host() -> None:
    connection = accepted(new_device())
    assert connection.state is State.ESTABLISHED
    assert connection.key == (PEER, PORT)


def test_the_host_dials_the_guest() -> None:
    device = new_device()
    connection = device.connect(22)
    ((header, _),) = sent(device)
    assert (header.op, header.dst_port, header.buf_alloc) == (Op.REQUEST, 22, WINDOW)
    packet(device, Op.RESPONSE, peer=22, port=header.src_port)
    (event,) = taken(device)
    assert isinstance(event, Established)
    assert event.connection is connection


def test_a_guest_that_refuses_ends_the_attempt() -> None:
    device = new_device()
    connection = device.connect(22)
    ((header, _),) = sent(device)
    packet(device, Op.RST, peer=22, port=header.src_port)
    (event,) = taken(device)
    assert isinstance(event, Closed)
    assert (event.connection, event.cause) == (connection, "the guest refused the connection")
    assert not device.connections
    assert ops(device) == []


def test_a_request_to_a_port_without_a_listener_is_reset() -> None:
    device = new_device()
    packet(device, Op.REQUEST, port=PORT + 1)
    ((header, _),) = sent(device)
    assert (header.op, header.src_port, header.dst_port) == (Op.RST, PORT + 1, PEER)
    assert not taken(device)


def test_the_number_of_connections_is_bounded() -> None:
    device = new_device(max_connections=3)
    for peer in range(3):
        accepted(device, peer=peer)
    packet(device, Op.REQUEST, peer=99)
    assert ops(device) == [Op.RST]
    with pytest.raises(VsockConnectError):
        device.connect(1)


@given(st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=20), st.integers(1, 5000), st.data())
def test_what_is_written_goes_out_whole_and_within_the_guests_credit(
    writes: list[bytes], buf_alloc: int, data: st.DataObject
) -> None:
    device = new_device()
    connection = accepted(device, buf_alloc=buf_alloc)
    arrived = b""
    consumed = 0
    for write in writes:
        device.write(connection, write)
        for _, payload in sent(device, data.draw(st.integers(1, BUFFER))):
            arrived += payload
            assert payload
            assert len(arrived) - consumed <= buf_alloc
        if data.draw(st.booleans()):
            consumed = data.draw(st.integers(consumed, len(arrived)))
            packet(device, Op.CREDIT_UPDATE, buf_alloc=buf_alloc, fwd_cnt=consumed)
    while len(arrived) < sum(map(len, writes)):
        consumed = len(arrived)
        packet(device, Op.CREDIT_UPDATE, buf_alloc=buf_alloc, fwd_cnt=consumed)
        arrived += b"".join(payload for _, payload in sent(device))
    assert arrived == b"".join(writes)
    assert connection.unsent == 0


def test_counters_may_wrap_around() -> None:
    device = new_device()
    connection = accepted(device)
    total = 0
    piece = bytes(WINDOW)
    # The counters have 32 bits; starting close to the end keeps the test short.
    connection._sent = connection._received = connection._forwarded = connection._announced = (1 << 32) - WINDOW // 2
    for _ in range(4):
        device.write(connection, piece)
        total += sum(header.length for header, _ in sent(device))
        packet(device, Op.RW, piece, fwd_cnt=connection._sent)
        device.consume(connection, len(piece))
        assert len([op for op in ops(device) if op is Op.CREDIT_UPDATE]) == 1
    assert total == 4 * WINDOW
    assert connection._sent < 1 << 32


def test_connections_take_turns() -> None:
    device = new_device()
    first, second = accepted(device, 1), accepted(device, 2)
    for connection in (first, second):
        device.write(connection, bytes(3 * BUFFER))
    assert [header.dst_port for header, _ in sent(device)] == [1, 2, 1, 2, 1, 2]


def test_small_writes_share_a_packet() -> None:
    device = new_device()
    connection = accepted(device)
    for index in range(10):
        device.write(connection, bytes([index]) * 100)
    ((_, payload),) = sent(device)
    assert payload == b"".join(bytes([index]) * 100 for index in range(10))


def test_credit_is_told_when_half_the_window_was_consumed() -> None:
    device = new_device()
    connection = accepted(device)
    packet(device, Op.RW, bytes(WINDOW))
    device.consume(connection, WINDOW // 2 - 1)
    assert ops(device) == []
    device.consume(connection, 1)
    ((header, _),) = sent(device)
    assert (header.op, header.fwd_cnt) == (Op.CREDIT_UPDATE, WINDOW // 2)


def test_credit_is_told_sooner_to_a_guest_whose_own_buffer_is_smaller() -> None:
    device = new_device()
    connection = accepted(device, buf_alloc=1000)
    packet(device, Op.RW, bytes(500), buf_alloc=1000)
    device.consume(connection, 500)
    assert ops(device) == [Op.CREDIT_UPDATE]


def test_credit_rides_on_data() -> None:
    device = new_device()
    connection = accepted(device)
    packet(device, Op.RW, bytes(WINDOW))
    device.consume(connection, WINDOW)
    device.write(connection, b"x")
    ((header, _),) = sent(device)
    assert (header.op, header.fwd_cnt) == (Op.RW, WINDOW)


def test_a_guest_that_asks_for_credit_is_told() -> None:
    device = new_device()
    accepted(device)
    packet(device, Op.CREDIT_REQUEST)
    ((header, _),) = sent(device)
    assert (header.op, header.buf_alloc) == (Op.CREDIT_UPDATE, WINDOW)


def test_a_guest_that_sends_beyond_its_credit_misbehaves() -> None:
    device = new_device()
    connection = accepted(device)
    packet(device, Op.RW, bytes(WINDOW))
    device.consume(connection, 10)
    packet(device, Op.RW, bytes(10))
    with pytest.raises(GuestMisbehaved, match="credit"):
        packet(device, Op.RW, b"x")


def test_a_guest_that_consumed_more_than_was_sent_misbehaves() -> None:
    device = new_device()
    connection = accepted(device)
    device.write(connection, b"abc")
    list(sent(device))
    packet(device, Op.CREDIT_UPDATE, fwd_cnt=3)
    with pytest.raises(GuestMisbehaved):
        packet(device, Op.CREDIT_UPDATE, fwd_cnt=4)


def test_an_older_count_is_no_news() -> None:
    device = new_device()
    connection = accepted(device, buf_alloc=10)
    device.write(connection, bytes(30))
    assert sum(header.length for header, _ in sent(device)) == 10
    packet(device, Op.CREDIT_UPDATE, buf_alloc=10, fwd_cnt=10)
    packet(device, Op.CREDIT_UPDATE, buf_alloc=10, fwd_cnt=4)
    assert sum(header.length for header, _ in sent(device)) == 10


def test_the_guest_ends_its_direction_and_still_receives() -> None:
    device = new_device()
    connection = accepted(device)
    packet(device, Op.RW, b"last")
    packet(device, Op.SHUTDOWN, flags=2)
    data, end = taken(device)
    assert isinstance(data, DataReceived)
    assert isinstance(end, EndOfStream)
    device.write(connection, b"answer")
    assert ops(device) == [Op.RW]


def test_the_guest_ends_both_directions_and_is_answered_with_a_reset() -> None:
    device = new_device()
    accepted(device)
    packet(device, Op.SHUTDOWN, flags=3)
    _, closed = taken(device)
    assert isinstance(closed, Closed)
    assert closed.cause is None
    assert ops(device) == [Op.RST]
    assert not device.connections


def test_two_shutdowns_of_one_direction_each_end_both() -> None:
    device = new_device()
    accepted(device)
    packet(device, Op.SHUTDOWN, flags=1)
    packet(device, Op.SHUTDOWN, flags=2)
    assert ops(device) == [Op.RST]


def test_what_a_closing_guest_did_not_take_is_told() -> None:
    device = new_device()
    connection = accepted(device, buf_alloc=5)
    device.write(connection, bytes(12))
    list(sent(device))
    packet(device, Op.SHUTDOWN, flags=3)
    closed = taken(device)[-1]
    assert isinstance(closed, Closed)
    assert closed.cause == "the guest closed it with 7 bytes unsent"


def test_a_guest_that_receives_no_more_is_sent_no_more() -> None:
    device = new_device()
    connection = accepted(device, buf_alloc=5)
    device.write(connection, bytes(12))
    list(sent(device))
    packet(device, Op.SHUTDOWN, flags=1, fwd_cnt=5)
    device.write(connection, b"more")
    assert connection.unsent == 0
    assert connection in device.progressed
    assert ops(device) == []


def test_shutting_and_closing_come_after_what_was_written() -> None:
    device = new_device()
    connection = accepted(device)
    device.write(connection, bytes(BUFFER + 1))
    device.shut(connection)
    assert [(Op(h.op), h.flags) for h, _ in sent(device)] == [(Op.RW, 0), (Op.RW, 0), (Op.SHUTDOWN, 2)]
    device.close(connection)
    assert [(Op(h.op), h.flags) for h, _ in sent(device)] == [(Op.SHUTDOWN, 3)]
    assert [type(event) for event in taken(device)] == [ShutdownSent]
    packet(device, Op.RST, fwd_cnt=BUFFER + 1)
    (closed,) = taken(device)
    assert isinstance(closed, Closed)
    assert closed.cause is None


def test_a_reset_is_told_with_its_cause() -> None:
    device = new_device()
    accepted(device)
    packet(device, Op.RST)
    (closed,) = taken(device)
    assert isinstance(closed, Closed)
    assert closed.cause == "the guest reset it"
    assert ops(device) == []


def test_aborting_resets_the_guest() -> None:
    device = new_device()
    connection = accepted(device)
    device.write(connection, b"lost")
    device.abort(connection)
    device.abort(connection)
    assert ops(device) == [Op.RST]
    assert not device.connections


@pytest.mark.parametrize("op", [op for op in Op if op not in (Op.REQUEST, Op.RST)])
def test_a_packet_for_no_connection_is_reset(op: Op) -> None:
    device = new_device()
    packet(device, op)
    assert ops(device) == [Op.RST]


def test_a_reset_for_no_connection_is_not_answered() -> None:
    device = new_device()
    packet(device, Op.RST)
    assert ops(device) == []


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("state", [State.CONNECTING, State.REQUESTED, State.ESTABLISHED, State.CLOSING])
def test_a_packet_that_the_table_does_not_list_resets_the_connection(state: State, op: Op) -> None:
    device = new_device()
    connection = accepted(device)
    connection.state = state
    packet(device, op)
    if (state, op) in RECEIVED:
        assert connection.state is RECEIVED[state, op]
    else:
        assert ops(device) == [Op.RST]
        assert isinstance(taken(device)[-1], Closed)
        assert not device.connections


@pytest.mark.parametrize(("op", "kind"), [(0, STREAM), (8, STREAM), (0xFFFF, STREAM), (Op.RW, 2), (Op.REQUEST, 0)])
def test_unknown_ops_and_types_are_reset(op: int, kind: int) -> None:
    device = new_device()
    packet(device, op, kind=kind)
    assert ops(device) == [Op.RST]
    accepted(device)
    packet(device, op, kind=kind)
    assert ops(device) == [Op.RST]
    assert not device.connections


@pytest.mark.parametrize(("source", "destination"), [(GUEST_CID + 1, HOST_CID), (GUEST_CID, 3), (1 << 40, HOST_CID)])
def test_packets_with_another_address_are_dropped(source: int, destination: int) -> None:
    device = new_device()
    device.receive(Header(source, destination, 1, PORT, 0, STREAM, Op.REQUEST, 0, 0, 0), b"")
    assert (device.dropped, ops(device), taken(device)) == (1, [], [])


def test_a_length_that_is_not_the_payloads_is_misbehaviour() -> None:
    device = new_device()
    with pytest.raises(GuestMisbehaved):
        device.receive(Header(GUEST_CID, HOST_CID, 1, PORT, 5, STREAM, Op.RW, 0, 0, 0), b"1234")


def test_data_after_the_end_resets_the_connection() -> None:
    device = new_device()
    accepted(device)
    packet(device, Op.SHUTDOWN, flags=2)
    packet(device, Op.RW, b"x")
    assert ops(device) == [Op.RST]


def test_waiting_resets_are_counted() -> None:
    device = new_device()
    for peer in range(MAX_REPLIES - 1):
        packet(device, Op.RW, peer=peer)
    assert not device.replies_full
    packet(device, Op.RW, peer=9999)
    assert device.replies_full
    assert ops(device) == [Op.RST] * MAX_REPLIES
    assert not device.replies_full


def test_a_driver_that_left_ends_every_connection() -> None:
    device = new_device()
    connections = {accepted(device, 1), accepted(device, 2), device.connect(3)}
    device.reset("gone")
    events = taken(device)
    assert {event.connection for event in events} == connections
    assert all(isinstance(event, Closed) and event.cause == "gone" for event in events)
    assert ops(device) == []


PACKETS = st.tuples(
    st.integers(0, 9),
    st.integers(0, 3),
    st.sampled_from([PORT, PORT, PORT + 1, 1 << 30]),
    st.binary(max_size=40),
    st.integers(0, 3),
    st.sampled_from([0, 10, 1 << 20, (1 << 32) - 1]),
    st.sampled_from([0, 0, 0, 1, 1 << 31]),
)


@given(st.lists(PACKETS, max_size=60), st.data())
def test_no_sequence_of_packets_breaks_the_device(
    packets: list[tuple[int, int, int, bytes, int, int, int]], data: st.DataObject
) -> None:
    device = new_device(max_connections=3)
    device.connect(1)
    try:
        for op, peer, port, payload, flags, buf_alloc, fwd_cnt in packets:
            packet(device, op, payload, peer=peer, port=port, flags=flags, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt)
            for event in taken(device):
                match event:
                    case Requested():
                        device.accept(event.connection)
                    case DataReceived():
                        device.consume(event.connection, len(event.data))
                        device.write(event.connection, event.data)
                    case EndOfStream():
                        (device.close, device.shut, device.abort)[data.draw(st.integers(0, 2))](event.connection)
                    case _:
                        pass
            list(sent(device))
            assert len(device.connections) <= 3
    except GuestMisbehaved:
        pass
