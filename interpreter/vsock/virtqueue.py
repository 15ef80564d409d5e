"""A split virtqueue, seen from the device (virtio 1.2, section 2.7).

Everything that the guest wrote is copied out of its memory once, and the copy is checked and used, so a guest that
changes a ring meanwhile gains nothing. Each step is one system call for any number of chains.

The order of memory accesses matters where the guest runs at the same time. Between any two calls of ``GuestMemory``
lies the locking of the other process's memory map, which is a full barrier; so an index is always read or written
in a call of its own, after or before what it publishes.

A copy of two bytes by the kernel may go byte by byte, and the guest or this side would then see half an index when
its upper byte changes. Copies of eight bytes go by words, so indexes are moved together with their neighbours: those
of the available ring are read and dropped, those of the used ring are this side's own and written as they are.
"""

import struct
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Final

from interpreter.errors import GuestMisbehaved
from interpreter.vsock.memory import GuestMemory, MemoryMap, ranges

MAX_QUEUE_SIZE: Final = 256
"""Largest ring that is served. QEMU's vsock device has 128 entries."""

MAX_DESCRIPTORS: Final = 20
"""Most descriptors of one chain. Linux uses 19: a header, and what one buffer of the network's kind may consist of."""

_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_NOTIFY = _NO_INTERRUPT = 1
_DESCRIPTOR: Final = struct.Struct("<QIHH")
_U16: Final = struct.Struct("<H")
_AVAILABLE_WORD: Final = struct.Struct("<HH4x")
_USED_WORD: Final = struct.Struct("<HHI")
_ELEMENT: Final = struct.Struct("<II")

_Descriptor = tuple[int, int, int, int]


class Chain:
    """One buffer that the guest made available: ``ranges`` of ``length`` bytes in all."""

    __slots__ = ("head", "length", "ranges")

    def __init__(self, head: int, spans: list[int], length: int) -> None:
        self.head = head
        self.ranges = spans
        """Flat addresses and lengths, as user addresses."""
        self.length = length

    def first(self, length: int) -> list[int]:
        """The ranges of the first ``length`` bytes."""
        if length == self.length:
            return self.ranges
        spans = self.ranges
        cut: list[int] = []
        index = 0
        while length > 0:
            size = min(spans[index + 1], length)
            cut += (spans[index], size)
            length -= size
            index += 2
        return cut


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Where a ring lies (user addresses) and how many entries it has."""

    size: int
    descriptors: int
    available: int
    used: int

    def check(self, memory_map: MemoryMap) -> None:
        """Raises VsockError or GuestMisbehaved when this cannot be a ring."""
        if not 0 < self.size <= MAX_QUEUE_SIZE or self.size & (self.size - 1):
            raise GuestMisbehaved(f"a ring of {self.size} entries cannot be used")
        if self.descriptors % 16 or self.available % 2 or self.used % 4:
            raise GuestMisbehaved("a part of a ring is not aligned")
        memory_map.check_user_range(self.descriptors, 16 * self.size)
        memory_map.check_user_range(self.available, 6 + 2 * self.size)
        memory_map.check_user_range(self.used, 6 + 8 * self.size)


class Virtqueue:
    """The device's side of one ring whose chains are all for reading, or all for writing.

    ``fetch`` takes what is available into ``chains``; ``put_used`` gives chains back. All methods raise
    GuestMisbehaved when the guest broke a rule of the ring, and what ``GuestMemory`` raises.
    """

    def __init__(
        self,
        memory: GuestMemory,
        memory_map: MemoryMap,
        layout: RingLayout,
        *,
        base: int = 0,
        writable: bool,
        min_chain: int,
        max_chain: int,
        event_idx: bool,
        indirect: bool,
    ) -> None:
        """``base``: index to start at; ``min_chain``, ``max_chain``: fewest and most bytes of one chain."""
        layout.check(memory_map)
        self.chains: deque[Chain] = deque()
        """Fetched and not used yet; the user takes them from the left."""
        self._memory = memory
        self._map = memory_map
        self._layout = layout
        self._writable = writable
        self._min_chain = min_chain
        self._max_chain = max_chain
        self._event_idx = event_idx
        self._indirect = indirect
        self._size = size = layout.size
        self._mask = size - 1
        self._next_avail = base & 0xFFFF
        self._next_used = base & 0xFFFF
        self._signalled = self._next_used
        self._avail_word_range = ranges((layout.available, 8))
        self._table_range = ranges((layout.available + 4, 2 * size), (layout.descriptors, 16 * size))
        self._used_word_range = ranges((layout.used, 8))
        self._avail_event_range = ranges((layout.used + 4 + 8 * size, 2))
        self._used_event_range = ranges((layout.available + 4 + 2 * size, 2))
        self._flags = 0
        _, _, self._first_id = _USED_WORD.unpack(memory.read(self._used_word_range, 8))

    @property
    def next_available(self) -> int:
        """The index of the first chain that was not given back: where a restarted ring goes on."""
        return self._next_used

    def change_map(self, memory_map: MemoryMap) -> None:
        """Go on with another memory map. What was fetched under the old one is fetched anew."""
        self._layout.check(memory_map)
        self._map = memory_map
        self.chains.clear()
        self._next_avail = self._next_used

    def fetch(self) -> int:
        """Take all that the guest made available into ``chains``; returns how many chains that were."""
        index = self._available_index()
        count = (index - self._next_avail) & 0xFFFF
        if not count:
            return 0
        if ((index - self._next_used) & 0xFFFF) > self._size:
            raise GuestMisbehaved(f"the guest made {count} chains available at once in a ring of {self._size}")
        size = self._size
        view = self._memory.read(self._table_range, 18 * size)
        heads = view[: 2 * size].cast("H")
        table = list(_DESCRIPTOR.iter_unpack(view[2 * size :]))
        first = self._next_avail
        self._next_avail = index
        self._parse([heads[(first + step) & self._mask] for step in range(count)], table)
        return count

    def put_used(
        self, used: list[tuple[int, int]], data: bytearray | None = None, spans: "array[int] | None" = None
    ) -> None:
        """Give chains back as (head, bytes written), after writing ``data`` to ``spans`` in the same call."""
        data = bytearray() if data is None else data
        spans = array("Q") if spans is None else spans
        position, left = self._next_used & self._mask, len(used)
        while left:
            run = min(left, self._size - position)
            spans.extend((self._layout.used + 4 + 8 * position, 8 * run))
            position, left = 0, left - run
        for head, written in used:
            data += _ELEMENT.pack(head, written)
        self._memory.write(spans, data)
        if (to_first := -self._next_used & self._mask) < len(used):
            self._first_id = used[to_first][0]
        self._next_used = (self._next_used + len(used)) & 0xFFFF
        self._write_used_word()

    def needs_call(self) -> bool:
        """Whether the guest wants to be told of what was put since this was last asked (2.7.7)."""
        old, new = self._signalled, self._next_used
        if old == new:
            return False
        self._signalled = new
        if not self._event_idx:
            flags, _ = _AVAILABLE_WORD.unpack(self._memory.read(self._avail_word_range, 8))
            return not flags & _NO_INTERRUPT
        # Half an event index does no harm: the guest writes it before it looks at the used index once more.
        (event,) = _U16.unpack(self._memory.read(self._used_event_range, 2))
        return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)

    def want_kick(self) -> bool:
        """Ask the guest to kick with its next chain. True when there is one by now, so no kick need come (2.7.10)."""
        if self._event_idx:
            self._memory.write(self._avail_event_range, _U16.pack(self._next_avail))
        else:
            self._flags = 0
            self._write_used_word()
        return self._available_index() != self._next_avail

    def suppress_kicks(self) -> None:
        """Ask the guest not to kick. With event indexes there is nothing to do: it kicks once until asked anew."""
        if not self._event_idx:
            self._flags = _NO_NOTIFY
            self._write_used_word()

    def _available_index(self) -> int:
        _, index = _AVAILABLE_WORD.unpack(self._memory.read(self._avail_word_range, 8))
        return index

    def _write_used_word(self) -> None:
        self._memory.write(self._used_word_range, _USED_WORD.pack(self._flags, self._next_used, self._first_id))

    def _parse(self, heads: list[int], table: list[_Descriptor]) -> None:
        chains: list[Chain] = []
        indirect: list[tuple[Chain, int]] = []
        tables = array("Q")
        for head in heads:
            if head >= self._size:
                raise GuestMisbehaved(f"descriptor {head} in a ring of {self._size}")
            chain = Chain(head, [], 0)
            tail = self._follow(chain, table, head)
            if tail is not None:
                address, length = tail
                indirect.append((chain, length))
                tables.extend((self._map.translate(address, length), length))
            chains.append(chain)
        if indirect:
            self._parse_indirect(indirect, tables)
        for chain in chains:
            if not self._min_chain <= chain.length <= self._max_chain:
                raise GuestMisbehaved(
                    f"a chain of {chain.length} bytes, but it must have {self._min_chain} to {self._max_chain}"
                )
        self.chains.extend(chains)

    def _parse_indirect(self, indirect: list[tuple[Chain, int]], tables: "array[int]") -> None:
        total = sum(length for _, length in indirect)
        view = self._memory.read(tables, total)
        start = 0
        for chain, length in indirect:
            table = list(_DESCRIPTOR.iter_unpack(view[start : start + length]))
            start += length
            if self._follow(chain, table, 0) is not None:
                raise GuestMisbehaved("an indirect table inside an indirect table")

    def _follow(self, chain: Chain, table: list[_Descriptor], index: int) -> tuple[int, int] | None:
        """Add the ranges of the chain that starts at ``index``; returns its indirect table, if it ends with one."""
        spans, translate, writable = chain.ranges, self._map.translate, self._writable
        for _ in range(MAX_DESCRIPTORS - len(spans) // 2):
            address, length, flags, following = table[index]
            if flags & _INDIRECT:
                return self._check_indirect(address, length, flags)
            if bool(flags & _WRITE) != writable:
                raise GuestMisbehaved(
                    f"a descriptor of the {'receive' if writable else 'transmit'} ring is the wrong way"
                )
            if length:
                spans += (translate(address, length), length)
                chain.length += length
            if not flags & _NEXT:
                return None
            if following >= len(table):
                raise GuestMisbehaved(f"descriptor {following} in a table of {len(table)}")
            index = following
        raise GuestMisbehaved(f"a chain of more than {MAX_DESCRIPTORS} descriptors, or a loop")

    def _check_indirect(self, address: int, length: int, flags: int) -> tuple[int, int]:
        if not self._indirect:
            raise GuestMisbehaved("an indirect descriptor, which was not agreed on")
        if flags & _NEXT:
            raise GuestMisbehaved("an indirect descriptor that goes on")
        if not length or length % 16 or length > 16 * MAX_DESCRIPTORS:
            raise GuestMisbehaved(f"an indirect table of {length} bytes")
        return address, length
