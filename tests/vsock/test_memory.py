"""Shows that no address of a guest's leads outside its memory, and that another process's memory is read and written
whole, in any number of pieces."""

import contextlib
import ctypes
import mmap
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import GuestMisbehaved, MachineDied, VsockError
from interpreter.vsock.memory import IOV_MAX, MemoryMap, ProcessMemory, Region, ranges

REGIONS = [Region(0, 0xA0000, 0x7F0000000000), Region(0x100000, 0x1000, 0x7E0000000000), Region(1 << 32, 64, 4096)]
U64 = st.integers(0, (1 << 64) - 1)
NEAR = st.sampled_from([0, 0xA0000, 0x100000, 0x101000, 1 << 32, (1 << 32) + 64, (1 << 64) - 1]).flatmap(
    lambda edge: st.integers(max(edge - 70, 0), min(edge + 70, (1 << 64) - 1))
)


@given(U64 | NEAR, st.integers(0, (1 << 32) - 1) | st.integers(0, 140))
def test_a_range_is_translated_exactly_when_one_region_holds_it(address: int, length: int) -> None:
    memory_map = MemoryMap(REGIONS)
    memory_map.translate(0x100000, 1)
    holding = [r for r in REGIONS if r.guest_address <= address < r.guest_address + r.size]
    if holding and address + length <= holding[0].guest_address + holding[0].size:
        expected = holding[0].user_address + address - holding[0].guest_address
        assert memory_map.translate(address, length) == expected
    elif length:
        with pytest.raises(GuestMisbehaved):
            memory_map.translate(address, length)


@pytest.mark.parametrize(
    "regions",
    [
        [Region(0, 0, 4096)],
        [Region((1 << 64) - 4096, 8192, 0)],
        [Region(0, 8192, (1 << 64) - 4096)],
        [Region(0, 8192, 0), Region(4096, 8192, 1 << 30)],
    ],
    ids=["empty", "wraps", "wraps-in-the-process", "overlap"],
)
def test_a_map_that_cannot_be_is_refused(regions: list[Region]) -> None:
    with pytest.raises(VsockError):
        MemoryMap(regions)


@dataclass
class Child:
    pid: int
    address: int
    size: int
    gate: int

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def child() -> Iterator[Child]:
    """A process with a private mapping of a memfd, as QEMU has; this process's view of it does not change."""
    size = 64 * mmap.PAGESIZE
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, size)
    mapping = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE)
    address = ctypes.addressof(pin := ctypes.c_char.from_buffer(mapping))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        mapping[: 4 * 256] = bytes(range(256)) * 4
        os.write(write, b"!")
        signal.pause()
        os._exit(0)
    os.read(read, 1)
    made = Child(pid, address, size, write)
    yield made
    with contextlib.suppress(ProcessLookupError):
        made.end()
    for each in (read, write, descriptor):
        os.close(each)
    del pin
    mapping.close()


def test_what_the_other_process_wrote_is_read(child: Child) -> None:
    memory = ProcessMemory(child.pid)
    view = memory.read(ranges((child.address + 250, 10), (child.address, 3)), 13)
    assert bytes(view) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 0, 1, 2])
    memory.close()


def test_more_pieces_than_one_call_takes_are_moved_whole(child: Child) -> None:
    memory = ProcessMemory(child.pid)
    pieces = 2 * IOV_MAX + 77
    places = ranges(*((child.address + 100 * index, 7) for index in range(pieces)))
    data = os.urandom(7 * pieces)
    memory.write(places, data)
    assert bytes(memory.read(places, len(data))) == data
    everything = bytes(memory.read(ranges((child.address, child.size)), child.size))
    assert everything[100:107] == data[7:14]
    memory.close()


def test_memory_that_is_not_mapped_is_an_error(child: Child) -> None:
    memory = ProcessMemory(child.pid)
    with pytest.raises(VsockError, match="not all mapped"):
        memory.read(ranges((16, 64)), 64)
    with pytest.raises(VsockError, match="not all mapped"):
        memory.write(ranges((child.address, 8), (16, 8)), bytes(16))
    memory.close()


def test_a_process_that_ended_is_noticed(child: Child) -> None:
    memory = ProcessMemory(child.pid)
    memory.check_alive()
    child.end()
    with pytest.raises(MachineDied):
        memory.check_alive()
    with pytest.raises(MachineDied):
        memory.read(ranges((child.address, 8)), 8)
    with pytest.raises(MachineDied):
        ProcessMemory(child.pid)
    memory.close()
