"""Shows that the back end answers what QEMU 7.2 sends, however its bytes are cut, keeps no descriptor that it should
close, and meets every broken message with VsockError."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import InterpreterError, VsockError
from interpreter.vsock.vhost_user import (
    MAX_PAYLOAD,
    OFFERED,
    CallChanged,
    Event,
    Feature,
    MemoryChanged,
    Reply,
    Request,
    RingStarted,
    RingStopped,
    VhostUserBackend,
)

CID = 0x1234
USER = 0x7000_0000
FEATURES = Feature.VERSION_1 | Feature.EVENT_IDX


def message(request: int, payload: bytes = b"", flags: int = 1, size: int | None = None) -> bytes:
    return struct.pack("<III", request, flags, len(payload) if size is None else size) + payload


def give(backend: VhostUserBackend, data: bytes, descriptors: tuple[int, ...] = (), most: int = 1 << 20) -> list[Event]:
    """Hand over bytes as a socket would: no more than wanted at a time, the descriptors with the first."""
    events: list[Event] = []
    first = list(descriptors)
    while data:
        size = min(backend.wanted, most)
        events += backend.receive(data[:size], first)
        data, first = data[size:], []
    return events


def new_backend(base: int = 77) -> VhostUserBackend:
    return VhostUserBackend(CID, lambda _: base)


def memory_table(*regions: tuple[int, int, int]) -> bytes:
    entries = [struct.pack("<4Q", guest, size, user, 0) for guest, size, user in regions]
    return struct.pack("<II", len(regions), 0) + b"".join(entries)


MEMORY = message(Request.SET_MEM_TABLE, memory_table((0, 0x10000, USER)))


def ring_messages(ring: int, features: Feature, base: int = 5) -> list[tuple[bytes, tuple[int, ...]]]:
    addresses = (USER + 0x1000, USER + 0x3000, USER + 0x2000, 0)
    messages: list[tuple[bytes, tuple[int, ...]]] = [
        (message(Request.SET_VRING_NUM, struct.pack("<II", ring, 128)), ()),
        (message(Request.SET_VRING_BASE, struct.pack("<II", ring, base)), ()),
        (message(Request.SET_VRING_ADDR, struct.pack("<II4Q", ring, 0, *addresses)), ()),
        (message(Request.SET_VRING_CALL, struct.pack("<Q", ring)), (20 + ring,)),
        (message(Request.SET_VRING_KICK, struct.pack("<Q", ring)), (10 + ring,)),
    ]
    if Feature.PROTOCOL_FEATURES in features:
        messages.append((message(Request.SET_VRING_ENABLE, struct.pack("<II", ring, 1)), ()))
    return messages


def started(features: Feature = FEATURES) -> tuple[VhostUserBackend, list[Event]]:
    backend = new_backend()
    events = give(backend, message(Request.SET_FEATURES, struct.pack("<Q", features)))
    events += give(backend, MEMORY, (30,))
    for data, descriptors in (*ring_messages(0, features), *ring_messages(1, features)):
        events += give(backend, data, descriptors)
    return backend, events


def only_reply(events: list[Event]) -> bytes:
    (event,) = events
    assert isinstance(event, Reply)
    return event.data


@given(st.integers(1, 40))
def test_features_and_configuration_are_told_however_the_bytes_are_cut(most: int) -> None:
    backend = new_backend()
    features = only_reply(give(backend, message(Request.GET_FEATURES), most=most))
    assert features == struct.pack("<IIIQ", 1, 5, 8, OFFERED)
    config = message(Request.GET_CONFIG, struct.pack("<III8x", 0, 8, 0))
    reply = only_reply(give(backend, config, most=most))
    assert reply == struct.pack("<IIIIIIQ", 24, 5, 20, 0, 8, 0, CID)


@pytest.mark.parametrize("features", [FEATURES, FEATURES | Feature.PROTOCOL_FEATURES])
def test_both_rings_start_with_what_was_set(features: Feature) -> None:
    backend, events = started(features)
    rings = [event for event in events if isinstance(event, RingStarted)]
    assert [(ring.ring, ring.base, ring.kick, ring.call, ring.features) for ring in rings] == [
        (0, 5, 10, 20, features),
        (1, 5, 11, 21, features),
    ]
    assert backend.garbage == [30], "the memory's descriptor is of no use"


def test_a_ring_that_must_be_enabled_does_not_start_before() -> None:
    backend = new_backend()
    give(backend, message(Request.SET_FEATURES, struct.pack("<Q", FEATURES | Feature.PROTOCOL_FEATURES)))
    give(backend, MEMORY)
    events = [event for data, fds in ring_messages(0, FEATURES) for event in give(backend, data, fds)]
    assert events == [CallChanged(0, 20)]
    (event,) = give(backend, message(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 1)))
    assert isinstance(event, RingStarted)


def test_asking_for_the_base_stops_the_ring_and_gives_up_its_kick() -> None:
    backend, _ = started()
    backend.garbage.clear()
    stopped, reply = give(backend, message(Request.GET_VRING_BASE, struct.pack("<II", 1, 0)))
    assert stopped == RingStopped(1)
    assert reply == Reply(struct.pack("<IIIII", 11, 5, 8, 1, 77))
    assert backend.garbage == [11]
    again = give(backend, message(Request.GET_VRING_BASE, struct.pack("<II", 1, 0)))
    assert again == [Reply(struct.pack("<IIIII", 11, 5, 8, 1, 77))]


def test_a_stopped_ring_starts_again() -> None:
    backend, _ = started()
    for ring in (0, 1):
        give(backend, message(Request.GET_VRING_BASE, struct.pack("<II", ring, 0)))
    events = [event for data, fds in ring_messages(0, FEATURES, base=0) for event in give(backend, data, fds)]
    assert [event.base for event in events if isinstance(event, RingStarted)] == [0]


def test_another_call_descriptor_replaces_the_first() -> None:
    backend, _ = started()
    backend.garbage.clear()
    assert give(backend, message(Request.SET_VRING_CALL, struct.pack("<Q", 0)), (40,)) == [CallChanged(0, 40)]
    assert give(backend, message(Request.SET_VRING_CALL, struct.pack("<Q", 0x100))) == [CallChanged(0, None)]
    assert backend.garbage == [20, 40]


def test_another_memory_table_reaches_running_rings() -> None:
    backend, _ = started()
    (event,) = give(backend, message(Request.SET_MEM_TABLE, memory_table((0, 0x20000, USER))), (50,))
    assert isinstance(event, MemoryChanged)
    assert event.memory_map.translate(0x1FFFF, 1) == USER + 0x1FFFF


def test_requests_that_want_an_acknowledgement_get_one() -> None:
    backend = new_backend()
    give(backend, message(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", 1 << 3 | 1 << 9)))
    acknowledged = give(backend, message(Request.SET_OWNER, flags=9))
    assert acknowledged == [Reply(struct.pack("<IIIQ", Request.SET_OWNER, 5, 8, 0))]


def test_the_end_stops_all_and_gives_up_every_descriptor() -> None:
    backend, _ = started()
    assert backend.close() == [RingStopped(0), RingStopped(1)]
    assert sorted(backend.garbage) == [10, 11, 20, 21, 30]


LIES = {
    "no-version": message(Request.GET_FEATURES, flags=0),
    "a-reply": message(Request.GET_FEATURES, flags=5),
    "huge": message(Request.SET_CONFIG, size=MAX_PAYLOAD + 1),
    "unknown": message(99),
    "feature-not-offered": message(Request.SET_FEATURES, struct.pack("<Q", 1 << 63)),
    "payload-cut-short": message(Request.SET_FEATURES, b"1234"),
    "no-such-ring": message(Request.SET_VRING_NUM, struct.pack("<II", 2, 128)),
    "base-too-large": message(Request.SET_VRING_BASE, struct.pack("<II", 0, 1 << 16)),
    "kick-without-descriptor": message(Request.SET_VRING_KICK, struct.pack("<Q", 0x100)),
    "kick-missing": message(Request.SET_VRING_KICK, struct.pack("<Q", 0)),
    "table-cut-short": message(Request.SET_MEM_TABLE, struct.pack("<II", 2, 0) + bytes(32)),
    "table-too-long": message(Request.SET_MEM_TABLE, struct.pack("<II", 9, 0) + bytes(9 * 32)),
    "table-empty-region": message(Request.SET_MEM_TABLE, memory_table((0, 0, 0))),
    "config-cut-short": message(Request.GET_CONFIG, b"1234"),
    "config-too-much": message(Request.GET_CONFIG, struct.pack("<III", 0, 1 << 31, 0)),
}


@pytest.mark.parametrize("cut", [1, 12, 13])
def test_descriptors_come_with_a_messages_first_byte_or_are_refused_and_given_up(cut: int) -> None:
    backend = new_backend()
    begun, rest = MEMORY[:cut], MEMORY[cut:]
    give(backend, begun, (30,))
    with pytest.raises(VsockError, match="descriptors inside"):
        give(backend, rest, (31,))
    backend.close()
    assert backend.garbage == [30, 31]


def test_a_message_has_at_most_as_many_descriptors_as_there_can_be_regions() -> None:
    give(new_backend(), MEMORY, tuple(range(8)))
    backend = new_backend()
    with pytest.raises(VsockError, match="9 descriptors"):
        give(backend, MEMORY, tuple(range(9)))
    backend.close()
    assert backend.garbage == list(range(9))


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_broken_message_is_an_error(lie: bytes) -> None:
    with pytest.raises(VsockError):
        give(new_backend(), lie)


def test_a_running_ring_cannot_be_changed() -> None:
    for data, descriptors in ring_messages(0, FEATURES)[:3]:
        backend, _ = started()
        with pytest.raises(VsockError):
            give(backend, data, descriptors)


def test_a_ring_outside_memory_does_not_start() -> None:
    backend = new_backend()
    give(backend, message(Request.SET_FEATURES, struct.pack("<Q", FEATURES)))
    messages = ring_messages(0, FEATURES)
    for data, descriptors in messages[:-1]:
        give(backend, data, descriptors)
    with pytest.raises(VsockError):
        give(backend, *messages[-1])


@given(st.lists(st.tuples(st.sampled_from(Request), st.binary(max_size=48), st.booleans()), max_size=30))
def test_noise_is_answered_or_refused_and_loses_no_descriptor(noise: list[tuple[Request, bytes, bool]]) -> None:
    backend, _ = started()
    sent = {10, 11, 20, 21, 30}
    next_descriptor = 100
    for request, payload, with_descriptor in noise:
        descriptors = (next_descriptor,) if with_descriptor else ()
        sent |= set(descriptors)
        next_descriptor += 1
        try:
            give(backend, message(request, payload), descriptors)
        except InterpreterError:
            break
    backend.close()
    assert sorted(backend.garbage) == sorted(sent)
