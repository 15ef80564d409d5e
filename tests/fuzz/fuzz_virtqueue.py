"""Fuzz a split ring: the input is the guest's memory, with its rings, tables and indexes.

Run: ``python tests/fuzz/fuzz_virtqueue.py -runs=100000``. Only GuestMisbehaved may come out, and no access may leave
the memory.
"""

import sys
from array import array
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports():  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    from interpreter.errors import GuestMisbehaved
    from interpreter.vsock.memory import MemoryMap, Region
    from interpreter.vsock.virtqueue import RingLayout, Virtqueue

SIZE, RAM, BASE = 8, 4096, 1 << 40
DESCRIPTORS, AVAILABLE, USED = 0, 16 * SIZE, 16 * SIZE + 32


class Memory:
    """Guest memory in a bytearray; leaving it fails the run."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data[:RAM].ljust(RAM, b"\0"))

    def read(self, ranges: "array[int]", length: int) -> memoryview:
        out = bytearray()
        for address, size in zip(ranges[::2], ranges[1::2], strict=True):
            assert BASE <= address <= address + size <= BASE + RAM
            out += self.data[address - BASE : address - BASE + size]
        assert len(out) == length
        return memoryview(out)

    def write(self, ranges: "array[int]", data: bytes | bytearray) -> None:
        position = 0
        for address, size in zip(ranges[::2], ranges[1::2], strict=True):
            assert BASE <= address <= address + size <= BASE + RAM
            self.data[address - BASE : address - BASE + size] = data[position : position + size]
            position += size
        assert position == len(data)


def test_one(data: bytes) -> None:
    if len(data) < 2:
        return
    memory = Memory(data[2:])
    flags = data[0]
    queue = Virtqueue(
        memory,
        # Guest addresses start at 0, so that small numbers, which a fuzzer likes, lie in memory.
        MemoryMap([Region(0, RAM, BASE)]),
        RingLayout(SIZE, BASE + DESCRIPTORS, BASE + AVAILABLE, BASE + USED),
        base=data[1],
        writable=bool(flags & 1),
        min_chain=1,
        max_chain=RAM,
        event_idx=bool(flags & 2),
        indirect=bool(flags & 4),
    )
    try:
        for _ in range(3):
            queue.fetch()
            while queue.chains:
                chain = queue.chains.popleft()
                assert 1 <= chain.length <= RAM
                written = min(chain.length, 1 + flags)
                spans = array("Q", chain.first(written) if flags & 1 else [])
                queue.put_used([(chain.head, written)], bytearray(sum(spans[1::2])), spans)
            queue.needs_call()
            queue.want_kick()
    except GuestMisbehaved:
        pass


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)  # pyright: ignore[reportUnknownMemberType]
    atheris.Fuzz()  # pyright: ignore[reportUnknownMemberType]
