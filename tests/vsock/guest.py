"""A guest's side of a vsock device, for tests: memory, rings as a driver works them, and a vhost-user front end."""

import asyncio
import ctypes
import mmap
import os
import socket
import struct
from array import array
from collections import deque
from typing import Final

from interpreter.vsock.memory import MemoryMap, Region
from interpreter.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Header, Op, parse_header
from interpreter.vsock.vhost_user import Feature
from interpreter.vsock.virtqueue import RingLayout

GUEST_CID: Final = 42
GUEST_BASE: Final = 0x1000_0000
"""Where guest memory starts, as the guest sees it; so that a missing translation shows."""
NEXT, WRITE, INDIRECT = 1, 2, 4
ALL_FEATURES: Final = Feature.VERSION_1 | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC | Feature.EVENT_IDX
PLAIN_FEATURES: Final = Feature.VERSION_1


class ByteMemory:
    """Guest memory in a bytearray, at user address ``base``; a step outside it fails the test."""

    def __init__(self, size: int, base: int = 0x7000_0000) -> None:
        self.data = bytearray(size)
        self.base = base
        self.map = MemoryMap([Region(GUEST_BASE, size, base)])
        self.calls = 0

    def _pairs(self, ranges: "array[int]") -> list[tuple[int, int]]:
        self.calls += 1
        pairs = [(address - self.base, length) for address, length in zip(ranges[::2], ranges[1::2], strict=True)]
        assert all(start >= 0 and start + length <= len(self.data) for start, length in pairs)
        return pairs

    def read(self, ranges: "array[int]", length: int) -> memoryview:
        data = b"".join(self.data[start : start + size] for start, size in self._pairs(ranges))
        assert len(data) == length
        return memoryview(bytearray(data))

    def write(self, ranges: "array[int]", data: bytes | bytearray) -> None:
        position = 0
        for start, size in self._pairs(ranges):
            self.data[start : start + size] = data[position : position + size]
            position += size
        assert position == len(data)


class DriverRing:
    """The driver's side of one split ring, in ``data`` at ``offset``."""

    def __init__(self, data: bytearray | mmap.mmap, offset: int, user_base: int, size: int, *, start: int = 0) -> None:
        self.data = data
        # Whole stores and loads: struct would clear an index before it packs the new one, under the device's eyes.
        self.halves = memoryview(data).cast("H")
        self.size = size
        self.descriptors = offset
        self.available = offset + 16 * size
        self.used = (self.available + 6 + 2 * size + 3) & ~3
        self.layout = RingLayout(size, user_base + self.descriptors, user_base + self.available, user_base + self.used)
        self.next_avail = self.next_used = start
        self.kicked = start
        self.free = deque(range(size))
        self.chains: dict[int, list[int]] = {}
        self.put16(self.available + 2, start)
        self.put16(self.used + 2, start)
        self.put16(self.available + 4 + 2 * size, start)

    def put16(self, offset: int, value: int) -> None:
        self.halves[offset // 2] = value & 0xFFFF

    def get16(self, offset: int) -> int:
        return self.halves[offset // 2]

    def put_descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        struct.pack_into("<QIHH", self.data, self.descriptors + 16 * index, address, length, flags, following)

    def add(self, buffers: list[tuple[int, int]], *, write: bool, table: int | None = None) -> int:
        """Make (guest address, length) buffers one chain; ``table``: offset of an indirect table to use for it."""
        flags = WRITE if write else 0
        if table is not None:
            for index, (address, length) in enumerate(buffers):
                following = NEXT if index + 1 < len(buffers) else 0
                struct.pack_into("<QIHH", self.data, table + 16 * index, address, length, flags | following, index + 1)
            heads = [self.free.popleft()]
            self.put_descriptor(heads[0], GUEST_BASE + table, 16 * len(buffers), INDIRECT, 0)
        else:
            heads = [self.free.popleft() for _ in buffers]
            for index, (address, length) in enumerate(buffers):
                last = index + 1 == len(buffers)
                following = 0 if last else heads[index + 1]
                self.put_descriptor(heads[index], address, length, flags | (0 if last else NEXT), following)
        self.chains[heads[0]] = heads
        self.publish(heads[0])
        return heads[0]

    def publish(self, head: int) -> None:
        self.put16(self.available + 4 + 2 * (self.next_avail % self.size), head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.put16(self.available + 2, self.next_avail)

    def reap(self) -> list[tuple[int, int]]:
        """The (head, written) that the device gave back since the last time."""
        done: list[tuple[int, int]] = []
        while self.next_used != self.get16(self.used + 2):
            place = self.used + 4 + 8 * (self.next_used % self.size)
            head, written = struct.unpack_from("<II", self.data, place)
            self.free.extend(self.chains.pop(head))
            done.append((head, written))
            self.next_used = (self.next_used + 1) & 0xFFFF
        return done

    def want_call(self) -> bool:
        """Ask to be called with the next used buffer; True when one is there by now."""
        self.put16(self.available + 4 + 2 * self.size, self.next_used)
        return self.next_used != self.get16(self.used + 2)

    def needs_kick(self, features: Feature) -> bool:
        old, self.kicked = self.kicked, self.next_avail
        if Feature.EVENT_IDX not in features:
            return not self.get16(self.used) & 1
        event = self.get16(self.used + 4 + 8 * self.size)
        return ((self.next_avail - event - 1) & 0xFFFF) < ((self.next_avail - old) & 0xFFFF)


class GuestEnded(Exception):
    """The device closed its end."""


_RAM = 8 * 1024 * 1024
_RX_RING, _TX_RING, _TABLES = 0x1000, 0x4000, 0x8000
_RX_BUFFERS, _TX_BUFFERS = 0x100000, 0x400000
_RX_ROOM, _TX_ROOM = 4352, 66 * 1024
_TX_SLOTS = 32


class FakeMachine:
    """A front end and a guest driver with memory of this process; ``close`` it."""

    def __init__(self, sock: socket.socket, features: Feature = ALL_FEATURES, size: int = 128) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.features = features
        self.size = size
        self.ram = mmap.mmap(-1, _RAM, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pin = ctypes.c_char.from_buffer(self.ram)
        self.user_base = ctypes.addressof(self._pin)
        self.loop = asyncio.get_running_loop()
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        self.called = [asyncio.Event(), asyncio.Event()]
        for index, call in enumerate(self.calls):
            self.loop.add_reader(call, self._on_call, index)
        self.packets: deque[tuple[Header, bytes]] = deque()
        self.rx_slots: dict[int, int] = {}
        self.tx_slots: dict[int, int] = {}
        self.tx_free = list(range(_TX_SLOTS))
        self.new_rings()

    def new_rings(self, start: int = 0) -> None:
        self.rx = DriverRing(self.ram, _RX_RING, self.user_base, self.size, start=start)
        self.tx = DriverRing(self.ram, _TX_RING, self.user_base, self.size, start=start)
        self.rx_slots.clear()
        self.tx_slots.clear()
        self.tx_free = list(range(_TX_SLOTS))

    def close(self) -> None:
        for call in self.calls:
            self.loop.remove_reader(call)
        for descriptor in (*self.kicks, *self.calls):
            os.close(descriptor)
        self.sock.close()

    def _on_call(self, index: int) -> None:
        os.eventfd_read(self.calls[index])
        self.called[index].set()

    # The front end.

    async def request(
        self, request: int, payload: bytes = b"", descriptors: tuple[int, ...] = (), *, reply: bool = False
    ) -> bytes:
        message = struct.pack("<III", request, 1, len(payload)) + payload
        socket.send_fds(self.sock, [message], descriptors)
        if not reply:
            return b""
        _, flags, size = struct.unpack("<III", await self._exactly(12))
        assert flags == 5
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self.loop.sock_recv(self.sock, size - len(data))
            if not part:
                raise GuestEnded
            data += part
        return data

    async def negotiate(self) -> int:
        """As QEMU does when the device is plugged; returns the CID from its configuration."""
        await self.request(1, reply=True)
        await self.request(15, reply=True)
        await self.request(16, struct.pack("<Q", 1 << 9))
        await self.request(3)
        config = await self.request(24, struct.pack("<III8x", 0, 8, 0), reply=True)
        return int(struct.unpack("<IIIQ", config)[3])

    async def start(self, base: int = 0) -> None:
        """As QEMU does when the guest's driver is ready."""
        await self.request(2, struct.pack("<Q", self.features))
        memory = os.memfd_create("useless")
        await self.request(5, struct.pack("<II4Q", 1, 0, GUEST_BASE, _RAM, self.user_base, 0), (memory,))
        os.close(memory)
        for index, ring in enumerate((self.rx, self.tx)):
            layout = ring.layout
            await self.request(8, struct.pack("<II", index, layout.size))
            await self.request(10, struct.pack("<II", index, base))
            addresses = (layout.descriptors, layout.used, layout.available, 0)
            await self.request(9, struct.pack("<II4Q", index, 0, *addresses))
            await self.request(12, struct.pack("<Q", index), (self.kicks[index],))
            await self.request(13, struct.pack("<Q", index), (self.calls[index],))
        if Feature.PROTOCOL_FEATURES in self.features:
            for index in range(2):
                await self.request(18, struct.pack("<II", index, 1))

    async def stop(self) -> list[int]:
        """As QEMU does when the driver lets go; returns where the rings stand."""
        replies = [await self.request(11, struct.pack("<II", index, 0), reply=True) for index in range(2)]
        return [int(struct.unpack("<II", reply)[1]) for reply in replies]

    async def plug(self) -> None:
        await self.negotiate()
        await self.start()
        self.post_buffers()

    # The driver.

    def post_buffers(self, most: int = 128) -> None:
        """Give the device receive buffers of 44 + 4096 bytes, as Linux does."""
        indirect = Feature.INDIRECT_DESC in self.features
        while len(self.rx_slots) < most and len(self.rx.free) >= 2:
            slot = next(slot for slot in range(self.size) if slot not in self.rx_slots.values())
            place = GUEST_BASE + _RX_BUFFERS + slot * _RX_ROOM
            buffers = [(place, HEADER_SIZE), (place + 64, 4096)]
            head = self.rx.add(buffers, write=True, table=_TABLES + 64 * slot if indirect else None)
            self.rx_slots[head] = slot
        self.kick(0)

    def kick(self, index: int) -> None:
        if (self.rx, self.tx)[index].needs_kick(self.features):
            os.eventfd_write(self.kicks[index], 1)

    async def packet(self) -> tuple[Header, bytes]:
        """The next packet from the device. Buffers are given back when half are used."""
        while not self.packets:
            self._reap_received()
            if len(self.rx_slots) < 32:
                self.post_buffers()
            if not self.packets and not self.rx.want_call():
                await self.called[0].wait()
                self.called[0].clear()
        return self.packets.popleft()

    def _reap_received(self) -> None:
        for head, written in self.rx.reap():
            place = _RX_BUFFERS + self.rx_slots.pop(head) * _RX_ROOM
            header = parse_header(self.ram[place : place + HEADER_SIZE])
            assert written == HEADER_SIZE + header.length
            self.packets.append((header, self.ram[place + 64 : place + 64 + header.length]))

    async def transmit(self, header: Header, payload: bytes = b"", *, length: int | None = None) -> None:
        """Send a packet; ``length``: bytes of the payload's buffer when it is to lie."""
        while True:
            self.tx_free += [self.tx_slots.pop(head) for head, _ in self.tx.reap()]
            if self.tx_free:
                break
            if not self.tx.want_call():
                await self.called[1].wait()
                self.called[1].clear()
        slot = self.tx_free.pop()
        place = _TX_BUFFERS + slot * _TX_ROOM
        self.ram[place : place + HEADER_SIZE] = header.pack()
        self.ram[place + 64 : place + 64 + len(payload)] = payload
        buffers = [(GUEST_BASE + place, HEADER_SIZE)]
        if length or (length is None and payload):
            buffers.append((GUEST_BASE + place + 64, len(payload) if length is None else length))
        indirect = Feature.INDIRECT_DESC in self.features and len(buffers) > 1
        head = self.tx.add(buffers, write=False, table=_TABLES + 0x4000 + 64 * slot if indirect else None)
        self.tx_slots[head] = slot
        self.kick(1)

    async def send(
        self,
        op: int,
        port: int,
        host_port: int,
        payload: bytes = b"",
        *,
        flags: int = 0,
        buf_alloc: int = 256 * 1024,
        fwd_cnt: int = 0,
        kind: int = STREAM,
    ) -> None:
        await self.transmit(
            Header(GUEST_CID, HOST_CID, port, host_port, len(payload), kind, op, flags, buf_alloc, fwd_cnt), payload
        )

    async def expect(self, op: Op) -> tuple[Header, bytes]:
        header, payload = await self.packet()
        assert Op(header.op) is op, header
        return header, payload


async def echo_guest(machine: FakeMachine) -> None:
    """A guest that takes every connection, echoes what comes, and ends its direction after the host did.

    It keeps to the host's credit, as a guest must.
    """
    streams: dict[int, _Echo] = {}
    while True:
        header, payload = await machine.packet()
        stream = streams.setdefault(header.src_port, _Echo(header.dst_port))
        stream.credit = header.buf_alloc - ((stream.sent - header.fwd_cnt) & 0xFFFF_FFFF)
        match Op(header.op):
            case Op.REQUEST:
                await machine.send(Op.RESPONSE, stream.port, header.src_port)
            case Op.RW:
                stream.waiting += payload
            case Op.SHUTDOWN:
                stream.ended |= bool(header.flags & 2)
                stream.gone |= header.flags == 3
            case Op.RST:
                del streams[header.src_port]
                continue
            case _:
                pass
        await stream.pump(machine, header.src_port)
        if stream.gone:
            await machine.send(Op.RST, stream.port, header.src_port)
            del streams[header.src_port]


class _Echo:
    def __init__(self, port: int) -> None:
        self.port = port
        self.sent = self.credit = self.forwarded = 0
        self.waiting = bytearray()
        self.ended = self.gone = self.shut = False

    async def pump(self, machine: FakeMachine, host_port: int) -> None:
        while self.waiting and self.credit > 0 and not self.gone:
            part = bytes(self.waiting[: min(self.credit, 64 * 1024)])
            del self.waiting[: len(part)]
            self.sent = (self.sent + len(part)) & 0xFFFF_FFFF
            self.credit -= len(part)
            self.forwarded = (self.forwarded + len(part)) & 0xFFFF_FFFF
            await machine.send(Op.RW, self.port, host_port, part, fwd_cnt=self.forwarded)
        if self.ended and not self.waiting and not self.shut and not self.gone:
            self.shut = True
            await machine.send(Op.SHUTDOWN, self.port, host_port, flags=2, fwd_cnt=self.forwarded)
