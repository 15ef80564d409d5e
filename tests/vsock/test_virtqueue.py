"""Shows that a split ring (virtio 1.2, 2.7) hands over every chain of an honest driver, whatever its shape, and that a
dishonest driver gets GuestMisbehaved: never another error, a hang, or a step outside its memory."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interpreter.errors import GuestMisbehaved, VsockError
from interpreter.vsock.vhost_user import Feature
from interpreter.vsock.virtqueue import MAX_DESCRIPTORS, MAX_QUEUE_SIZE, RingLayout, Virtqueue

from .guest import GUEST_BASE, INDIRECT, NEXT, WRITE, ByteMemory, DriverRing

SIZE = 16
RAM = 256 * 1024
TABLES = 0x10000
BUFFERS = 0x20000


class Bench:
    """A driver and a device on the same memory."""

    def __init__(
        self,
        *,
        start: int = 0,
        event_idx: bool = True,
        writable: bool = False,
        min_chain: int = 0,
        max_chain: int = RAM,
        size: int = SIZE,
    ) -> None:
        self.memory = ByteMemory(RAM)
        self.driver = DriverRing(self.memory.data, 0x1000, self.memory.base, size, start=start)
        self.queue = Virtqueue(
            self.memory,
            self.memory.map,
            self.driver.layout,
            base=start,
            writable=writable,
            min_chain=min_chain,
            max_chain=max_chain,
            event_idx=event_idx,
            indirect=True,
        )


SHAPES = st.lists(
    st.tuples(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.booleans()), min_size=1, max_size=40
)


PAUSE = st.booleans()
"""Whether a side stops for now; the smallest draw goes on, so every run ends."""


@given(SHAPES, st.sampled_from([0, 7, 65530, 65535]), st.booleans(), st.data())
def test_every_chain_is_handed_over_whole_and_in_order(
    shapes: list[tuple[list[int], bool]], start: int, event_idx: bool, data: st.DataObject
) -> None:
    bench = Bench(start=start, event_idx=event_idx)
    driver, queue = bench.driver, bench.queue
    place = BUFFERS
    waiting = list(shapes)
    given_out: list[tuple[int, list[int]]] = []
    returned = 0
    while waiting or given_out:
        while waiting and len(driver.free) >= len(waiting[0][0]) and not data.draw(PAUSE):
            sizes, indirect = waiting.pop(0)
            buffers = [(GUEST_BASE + place + 512 * index, size) for index, size in enumerate(sizes)]
            head = driver.add(
                buffers, write=False, table=TABLES + 512 * (driver.next_avail % SIZE) if indirect else None
            )
            words = [w for address, size in buffers for w in (address - GUEST_BASE + bench.memory.base, size)]
            given_out.append((head, words))
        queue.fetch()
        used: list[tuple[int, int]] = []
        while queue.chains and not data.draw(PAUSE):
            chain = queue.chains.popleft()
            head, words = given_out.pop(0)
            assert (chain.head, chain.ranges, chain.length) == (head, words, sum(words[1::2]))
            used.append((chain.head, 5))
        if used:
            queue.put_used(used)
            assert driver.reap() == used
            returned += len(used)
    assert returned == len(shapes)
    assert queue.next_available == (start + returned) & 0xFFFF


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_the_first_bytes_of_a_chain_are_its_first_ranges(sizes: list[int], data: st.DataObject) -> None:
    bench = Bench(writable=True)
    bench.driver.add([(GUEST_BASE + BUFFERS + 64 * i, size) for i, size in enumerate(sizes)], write=True)
    bench.queue.fetch()
    chain = bench.queue.chains[0]
    length = data.draw(st.integers(1, sum(sizes)))
    cut = chain.first(length)
    everything = [a + i for a, n in zip(chain.ranges[::2], chain.ranges[1::2], strict=True) for i in range(n)]
    assert [a + i for a, n in zip(cut[::2], cut[1::2], strict=True) for i in range(n)] == everything[:length]


def test_normal_descriptors_may_end_with_an_indirect_one() -> None:
    bench = Bench()
    bench.driver.put_descriptor(0, GUEST_BASE + BUFFERS, 10, NEXT, 1)
    bench.driver.put_descriptor(1, GUEST_BASE + TABLES, 16, INDIRECT, 0)
    struct.pack_into("<QIHH", bench.memory.data, TABLES, GUEST_BASE + BUFFERS + 100, 20, 0, 0)
    bench.driver.publish(0)
    bench.queue.fetch()
    base = bench.memory.base + BUFFERS
    assert bench.queue.chains[0].ranges == [base, 10, base + 100, 20]


def test_a_full_ring_takes_few_calls() -> None:
    bench = Bench()
    for index in range(SIZE):
        bench.driver.add([(GUEST_BASE + BUFFERS, 44), (GUEST_BASE, 99)], write=False, table=TABLES + 512 * index)
    bench.memory.calls = 0
    assert bench.queue.fetch() == SIZE
    bench.queue.put_used([(chain.head, 0) for chain in bench.queue.chains])
    assert bench.memory.calls == 5


@pytest.mark.parametrize("event_idx", [True, False])
def test_calls_come_when_the_driver_wants_them(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    driver, queue = bench.driver, bench.queue

    def use_one() -> bool:
        driver.add([(GUEST_BASE, 8)], write=False)
        queue.fetch()
        queue.put_used([(queue.chains.popleft().head, 0)])
        driver.reap()
        return queue.needs_call()

    assert not queue.needs_call()
    if event_idx:
        assert use_one()
        assert not use_one()
        driver.want_call()
        assert use_one()
    else:
        assert use_one()
        driver.put16(driver.available, 1)
        assert not use_one()


@pytest.mark.parametrize("event_idx", [True, False])
def test_a_kick_is_asked_for_without_missing_what_came_meanwhile(event_idx: bool) -> None:
    bench = Bench(event_idx=event_idx)
    features = Feature.EVENT_IDX if event_idx else Feature(0)
    bench.queue.suppress_kicks()
    assert not bench.queue.want_kick()
    bench.driver.add([(GUEST_BASE, 8)], write=False)
    assert bench.driver.needs_kick(features)
    assert bench.queue.want_kick()


def test_another_memory_map_takes_what_was_fetched_anew() -> None:
    bench = Bench()
    bench.driver.add([(GUEST_BASE, 8)], write=False)
    bench.queue.fetch()
    bench.queue.change_map(bench.memory.map)
    assert not bench.queue.chains
    assert bench.queue.fetch() == 1


Break = Callable[[Bench], None]


def _publish(bench: Bench, address: int, length: int, flags: int = 0, following: int = 0) -> None:
    bench.driver.put_descriptor(0, address, length, flags, following)
    bench.driver.publish(0)


def _loop(bench: Bench) -> None:
    bench.driver.put_descriptor(1, GUEST_BASE, 8, NEXT, 0)
    _publish(bench, GUEST_BASE, 8, NEXT, 1)


def _table(bench: Bench, entries: list[tuple[int, int, int, int]], length: int | None = None) -> None:
    for index, entry in enumerate(entries):
        struct.pack_into("<QIHH", bench.memory.data, TABLES + 16 * index, *entry)
    _publish(bench, GUEST_BASE + TABLES, 16 * len(entries) if length is None else length, INDIRECT)


def _too_far(bench: Bench) -> None:
    bench.driver.put16(bench.driver.available + 2, SIZE + 1)


def _backwards(bench: Bench) -> None:
    bench.driver.put16(bench.driver.available + 2, 0xFFFF)


def _bad_head(bench: Bench) -> None:
    bench.driver.publish(SIZE)


LIES: dict[str, Break] = {
    "outside-memory": lambda b: _publish(b, GUEST_BASE + RAM, 8),
    "below-memory": lambda b: _publish(b, GUEST_BASE - 1, 8),
    "across-the-end": lambda b: _publish(b, GUEST_BASE + RAM - 4, 8),
    "wraps": lambda b: _publish(b, (1 << 64) - 4, 8),
    "loop": _loop,
    "itself": lambda b: _publish(b, GUEST_BASE, 8, NEXT, 0),
    "next-outside-the-table": lambda b: _publish(b, GUEST_BASE, 8, NEXT, SIZE),
    "wrong-way": lambda b: _publish(b, GUEST_BASE, 8, WRITE),
    "too-long": lambda b: _publish(b, GUEST_BASE, 4097),
    "too-short": lambda b: _publish(b, GUEST_BASE, 3),
    "empty": lambda b: _publish(b, GUEST_BASE, 0),
    "index-too-far": _too_far,
    "index-backwards": _backwards,
    "head-outside-the-ring": _bad_head,
    "indirect-with-next": lambda b: _publish(b, GUEST_BASE + TABLES, 16, INDIRECT | NEXT, 1),
    "indirect-empty": lambda b: _publish(b, GUEST_BASE + TABLES, 0, INDIRECT),
    "indirect-uneven": lambda b: _publish(b, GUEST_BASE + TABLES, 24, INDIRECT),
    "indirect-longer-than-any-driver-needs": lambda b: _chain(b, MAX_DESCRIPTORS + 1, indirect=True),
    "indirect-outside-memory": lambda b: _publish(b, GUEST_BASE + RAM - 8, 16, INDIRECT),
    "indirect-in-indirect": lambda b: _table(b, [(GUEST_BASE, 16, INDIRECT, 0)]),
    "indirect-loop": lambda b: _table(b, [(GUEST_BASE, 8, NEXT, 1), (GUEST_BASE, 8, NEXT, 0)]),
    "indirect-next-outside": lambda b: _table(b, [(GUEST_BASE, 8, NEXT, 1)]),
    "indirect-entry-outside-memory": lambda b: _table(b, [(GUEST_BASE + RAM, 8, 0, 0)]),
}


def _chain(bench: Bench, count: int, *, indirect: bool) -> None:
    table = TABLES if indirect else None
    bench.driver.add([(GUEST_BASE + BUFFERS + 16 * n, 8) for n in range(count)], write=False, table=table)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_driver_that_lies_is_found_out(lie: Break) -> None:
    bench = Bench(min_chain=4, max_chain=4096)
    lie(bench)
    with pytest.raises(GuestMisbehaved):
        bench.queue.fetch()


def test_a_chain_may_have_as_many_descriptors_as_a_driver_needs() -> None:
    bench = Bench(min_chain=4, max_chain=4096)
    _chain(bench, MAX_DESCRIPTORS, indirect=True)
    assert bench.queue.fetch()
    assert len(bench.queue.chains[0].ranges) == 2 * MAX_DESCRIPTORS


def test_a_chain_of_more_is_refused_also_when_the_ring_has_room_for_it() -> None:
    bench = Bench(min_chain=4, max_chain=4096, size=64)
    _chain(bench, MAX_DESCRIPTORS + 1, indirect=False)
    with pytest.raises(GuestMisbehaved, match="descriptors"):
        bench.queue.fetch()


def test_an_index_that_runs_ahead_of_what_was_given_back_is_found_out() -> None:
    bench = Bench()
    for _ in range(SIZE):
        bench.driver.add([(GUEST_BASE, 8)], write=False)
    bench.queue.fetch()
    bench.driver.put16(bench.driver.available + 2, SIZE + 1)
    with pytest.raises(GuestMisbehaved):
        bench.queue.fetch()


def test_an_indirect_table_that_was_not_agreed_on_is_found_out() -> None:
    bench = Bench()
    bench.queue = Virtqueue(
        bench.memory,
        bench.memory.map,
        bench.driver.layout,
        writable=False,
        min_chain=0,
        max_chain=4096,
        event_idx=False,
        indirect=False,
    )
    _publish(bench, GUEST_BASE + TABLES, 16, INDIRECT)
    with pytest.raises(GuestMisbehaved):
        bench.queue.fetch()


@settings(max_examples=300)
@given(st.binary(min_size=64, max_size=400), st.binary(max_size=200), st.integers(0, 20), st.booleans())
def test_noise_in_the_ring_does_no_harm(ring: bytes, table: bytes, index: int, writable: bool) -> None:
    bench = Bench(writable=writable)
    bench.memory.data[0x1000 : 0x1000 + len(ring)] = ring
    bench.memory.data[TABLES : TABLES + len(table)] = table
    bench.driver.put16(bench.driver.available + 2, index)
    try:
        bench.queue.fetch()
    except GuestMisbehaved:
        return
    for chain in bench.queue.chains:
        low, high = bench.memory.base, bench.memory.base + RAM
        pairs = list(zip(chain.ranges[::2], chain.ranges[1::2], strict=True))
        assert len(pairs) <= SIZE
        assert all(low <= address and address + length <= high for address, length in pairs)


@pytest.mark.parametrize(
    ("size", "descriptors", "available", "used"),
    [
        (0, 0, 0x1000, 0x2000),
        (12, 0, 0x1000, 0x2000),
        (2 * MAX_QUEUE_SIZE, 0, 0x1000, 0x2000),
        (16, 8, 0x1000, 0x2000),
        (16, 0, 0x1001, 0x2000),
        (16, 0, 0x1000, 0x2002),
        (16, RAM - 16, 0x1000, 0x2000),
        (16, 0, RAM - 2, 0x2000),
        (16, 0, 0x1000, RAM),
        (16, 0, 0x1000, (1 << 64) - 4),
    ],
)
def test_a_ring_that_cannot_be_is_refused(size: int, descriptors: int, available: int, used: int) -> None:
    memory = ByteMemory(RAM)
    base = memory.base
    with pytest.raises(VsockError):
        RingLayout(size, base + descriptors, base + available, base + used).check(memory.map)
