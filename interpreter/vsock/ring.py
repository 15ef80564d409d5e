"""One ring of the device: packets out of the guest's buffers and into them, and calls to its driver."""

import array as arrays
import contextlib
import os
from typing import Final

from interpreter.errors import GuestMisbehaved
from interpreter.vsock.device import DeviceProtocol
from interpreter.vsock.memory import ProcessMemory
from interpreter.vsock.packet import HEADER_SIZE, Header, parse_header
from interpreter.vsock.virtqueue import Virtqueue

MAX_DATA: Final = 64 * 1024
"""Bytes of data in one packet at most."""

_BATCH: Final = 1024 * 1024
_FILL: Final = 64 * 1024
"""Bytes put into the receive ring before they are published, so that the guest works while the next are made."""
_FILL_CHAINS: Final = 64
"""And buffers: a guest may offer small ones."""
_FILLS: Final = 8
"""How often that is done before others have their turn."""
MIN_RECEIVE: Final = 512
"""Bytes of a receive buffer at least. Linux gives 4 KiB; each costs the same, however little it holds."""
_EVENTFD_ONE: Final = (1).to_bytes(8, "little")


class Ring:
    """A queue with the eventfds beside it: ``kick`` is the guest's, ``call`` wakes its driver."""

    __slots__ = ("call", "kick", "queue")

    def __init__(self, queue: Virtqueue, kick: int, call: int | None) -> None:
        self.queue = queue
        self.kick = kick
        self.call = call

    def take(self, memory: ProcessMemory) -> list[tuple[Header, bytes]]:
        """A batch of the packets that the guest sends. Raises GuestMisbehaved, MachineDied."""
        chains, spans, total = self.queue.chains, arrays.array("Q"), 0
        sizes: list[int] = []
        used: list[tuple[int, int]] = []
        while chains and (not total or total + chains[0].length <= _BATCH):
            chain = chains.popleft()
            spans.extend(chain.ranges)
            total += chain.length
            sizes.append(chain.length)
            used.append((chain.head, 0))
        if not used:
            return []
        view = memory.read(spans, total)
        packets: list[tuple[Header, bytes]] = []
        offset = 0
        for size in sizes:
            header = parse_header(view, offset)
            if header.length > size - HEADER_SIZE:
                raise GuestMisbehaved(f"a packet of {header.length} bytes in a buffer of {size - HEADER_SIZE}")
            start = offset + HEADER_SIZE
            packets.append((header, bytes(view[start : start + header.length])))
            offset += size
        self.queue.put_used(used)
        self._call_guest()
        return packets

    def fill(self, protocol: DeviceProtocol) -> bool:
        """Send what wants to be sent; True when there is more, and buffers, which wait for the loop's next turn.

        Raises GuestMisbehaved, MachineDied.
        """
        queue, chains = self.queue, self.queue.chains
        for _ in range(_FILLS):
            if not protocol.wants_to_send:
                return False
            if not chains and not queue.fetch():
                if queue.want_kick():
                    continue
                return False
            out, spans, used = bytearray(), arrays.array("Q"), list[tuple[int, int]]()
            while chains and len(out) < _FILL and len(used) < _FILL_CHAINS:
                chain = chains[0]
                size = protocol.next_packet(min(chain.length - HEADER_SIZE, MAX_DATA), out)
                if not size:
                    break
                chains.popleft()
                spans.extend(chain.first(size))
                used.append((chain.head, size))
            if used:
                queue.put_used(used, out, spans)
                self._call_guest()
        return protocol.wants_to_send

    def _call_guest(self) -> None:
        if self.call is not None and self.queue.needs_call():
            # A full eventfd already says what this would say.
            with contextlib.suppress(BlockingIOError):
                os.write(self.call, _EVENTFD_ONE)
