"""The back end's side of vhost-user for a vsock device, without I/O.

Source: QEMU's docs/interop/vhost-user, and what QEMU 7.2 sends. ``VhostUserBackend`` says how many bytes it wants,
takes them with the descriptors that came along, and returns what to do: replies to send and events. The front end
is QEMU, so what it sends is checked as strictly as the guest's own bytes: a guest may have taken QEMU over.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from interpreter.errors import VsockError
from interpreter.vsock.memory import MemoryMap, Region
from interpreter.vsock.virtqueue import RingLayout

RECEIVE_RING: Final = 0
TRANSMIT_RING: Final = 1
_RINGS: Final = 2


class Feature(enum.IntFlag):
    """Virtio feature bits that this device offers."""

    NOTIFY_ON_EMPTY = 1 << 24
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


OFFERED: Final = Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.PROTOCOL_FEATURES | Feature.VERSION_1


class ProtocolFeature(enum.IntFlag):
    """vhost-user protocol feature bits that this back end offers."""

    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9


class Request(enum.IntEnum):
    """Requests of the front end that a vsock device gets."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25


_HEADER: Final = struct.Struct("<III")
_U64: Final = struct.Struct("<Q")
_STATE: Final = struct.Struct("<II")
_ADDRESSES: Final = struct.Struct("<IIQQQQ")
_REGION: Final = struct.Struct("<QQQQ")
_CONFIG: Final = struct.Struct("<III")

HEADER_SIZE: Final = _HEADER.size
MAX_PAYLOAD: Final = 4096
MAX_REGIONS: Final = 8
_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8
_NO_DESCRIPTOR: Final = 1 << 8
_RING_MASK: Final = 0xFF


@dataclass(frozen=True, slots=True)
class RingStarted:
    """A ring may be worked from now on; ``kick`` and ``call`` are eventfds that stay the back end's."""

    ring: int
    layout: RingLayout
    base: int
    features: Feature
    memory_map: MemoryMap
    kick: int
    call: int | None


@dataclass(frozen=True, slots=True)
class RingStopped:
    """A ring must not be touched any more. Its kick eventfd is about to be closed."""

    ring: int


@dataclass(frozen=True, slots=True)
class CallChanged:
    """Another eventfd (or None) tells the guest of used buffers."""

    ring: int
    call: int | None


@dataclass(frozen=True, slots=True)
class MemoryChanged:
    """Rings that run go on with another memory map."""

    memory_map: MemoryMap


@dataclass(frozen=True, slots=True)
class Reply:
    """Bytes to send to the front end."""

    data: bytes


Event = RingStarted | RingStopped | CallChanged | MemoryChanged | Reply


@dataclass(slots=True)
class _Ring:
    size: int = 0
    addresses: tuple[int, int, int] | None = None
    base: int = 0
    kick: int | None = None
    call: int | None = None
    enabled: bool = False
    running: bool = False


@dataclass(slots=True)
class _Message:
    request: int
    flags: int
    payload: bytes
    descriptors: list[int] = field(default_factory=list[int])

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        if len(self.payload) != layout.size:
            raise VsockError(f"vhost-user request {self.request} with {len(self.payload)} bytes, not {layout.size}")
        return layout.unpack(self.payload)


class VhostUserBackend:
    """The negotiation and the state of both rings.

    ``wanted`` bytes are to be given to ``receive``, then again. Every method raises VsockError when the front end
    breaks the protocol. The descriptors that are to be closed gather in ``garbage``.
    """

    def __init__(self, guest_cid: int, ring_base: Callable[[int], int]) -> None:
        """``ring_base`` gives the index where a running ring would go on if it were stopped now."""
        self.wanted = HEADER_SIZE
        self.garbage: list[int] = []
        self._config = _U64.pack(guest_cid)
        self._ring_base = ring_base
        self._head: tuple[int, int] | None = None
        self._data = bytearray()
        self._descriptors: list[int] = []
        self._features = Feature(0)
        self._reply_ack = False
        self._map = MemoryMap(())
        self._rings = [_Ring() for _ in range(_RINGS)]
        self._handlers: dict[int, Callable[[_Message], list[Event]]] = {
            Request.GET_FEATURES: lambda m: [self._reply(m, _U64.pack(OFFERED))],
            Request.SET_FEATURES: self._set_features,
            Request.SET_OWNER: lambda _: [],
            Request.RESET_OWNER: lambda _: self._stop_all(),
            Request.SET_MEM_TABLE: self._set_mem_table,
            Request.SET_VRING_NUM: self._set_vring_num,
            Request.SET_VRING_ADDR: self._set_vring_addr,
            Request.SET_VRING_BASE: self._set_vring_base,
            Request.GET_VRING_BASE: self._get_vring_base,
            Request.SET_VRING_KICK: self._set_vring_kick,
            Request.SET_VRING_CALL: self._set_vring_call,
            Request.SET_VRING_ERR: self._set_vring_err,
            Request.GET_PROTOCOL_FEATURES: lambda m: [
                self._reply(m, _U64.pack(ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG))
            ],
            Request.SET_PROTOCOL_FEATURES: self._set_protocol_features,
            Request.SET_VRING_ENABLE: self._set_vring_enable,
            Request.GET_CONFIG: self._get_config,
            Request.SET_CONFIG: lambda _: [],
        }

    def receive(self, data: bytes, descriptors: list[int]) -> list[Event]:
        """Take at most ``wanted`` bytes and the descriptors that came with them; events in the order to act on."""
        begun = self._head is not None or bool(self._data)
        self._descriptors += descriptors
        # They come with a message's first byte (QEMU sends each in one piece); more later could take all there are.
        if len(self._descriptors) > MAX_REGIONS or (descriptors and begun):
            raise VsockError(f"{len(descriptors)} descriptors {'inside' if begun else 'with'} a vhost-user message")
        self._data += data
        self.wanted -= len(data)
        if self.wanted < 0:
            raise VsockError("more bytes than were wanted")
        if self.wanted:
            return []
        if self._head is None:
            request, flags, size = _HEADER.unpack(self._data)
            self._data.clear()
            if flags & _VERSION_MASK != _VERSION or flags & _REPLY:
                raise VsockError(f"a vhost-user message with flags {flags:#x}")
            if size > MAX_PAYLOAD:
                raise VsockError(f"a vhost-user message of {size} bytes")
            self._head = request, flags
            self.wanted = size
            if size:
                return []
        request, flags = self._head
        message = _Message(request, flags, bytes(self._data), self._descriptors)
        self._head, self._descriptors = None, []
        self._data.clear()
        self.wanted = HEADER_SIZE
        return self._handle(message)

    def close(self) -> list[Event]:
        """The front end is gone: stop both rings and give up every descriptor."""
        events = self._stop_all()
        self.garbage += self._descriptors
        self._descriptors = []
        for ring in self._rings:
            for descriptor in (ring.kick, ring.call):
                if descriptor is not None:
                    self.garbage.append(descriptor)
            ring.kick = ring.call = None
        return events

    def _handle(self, message: _Message) -> list[Event]:
        handler = self._handlers.get(message.request)
        try:
            if handler is None:
                raise VsockError(f"vhost-user request {message.request}, which was not offered")
            events = handler(message)
        finally:
            self.garbage += message.descriptors
        if self._reply_ack and message.flags & _NEED_REPLY and not any(isinstance(event, Reply) for event in events):
            events.append(self._reply(message, _U64.pack(0)))
        return events

    @staticmethod
    def _reply(message: _Message, payload: bytes) -> Reply:
        return Reply(_HEADER.pack(message.request, _VERSION | _REPLY, len(payload)) + payload)

    def _set_features(self, message: _Message) -> list[Event]:
        (features,) = message.unpack(_U64)
        # As plain numbers: the inverse of an IntFlag has its known bits only.
        if unknown := features & ~int(OFFERED):
            raise VsockError(f"features {unknown:#x} were not offered")
        self._features = Feature(features)
        return []

    def _set_protocol_features(self, message: _Message) -> list[Event]:
        (features,) = message.unpack(_U64)
        self._reply_ack = bool(features & ProtocolFeature.REPLY_ACK)
        return []

    def _set_mem_table(self, message: _Message) -> list[Event]:
        """The descriptors are closed unseen: a private mapping shows the guest's pages to its process only."""
        payload = message.payload
        count = int.from_bytes(payload[:4], "little")
        if len(payload) < 8 or count > MAX_REGIONS or len(payload) < 8 + count * _REGION.size:
            raise VsockError(f"a memory table of {count} regions in {len(payload)} bytes")
        entries = _REGION.iter_unpack(payload[8 : 8 + count * _REGION.size])
        self._map = MemoryMap([Region(guest, size, user) for guest, size, user, _ in entries])
        return [MemoryChanged(self._map)]

    def _ring(self, index: int) -> _Ring:
        if index >= _RINGS:
            raise VsockError(f"ring {index} of a device that has {_RINGS}")
        return self._rings[index]

    def _idle_ring(self, index: int) -> _Ring:
        ring = self._ring(index)
        if ring.running:
            raise VsockError(f"ring {index} was changed while it runs")
        return ring

    def _set_vring_num(self, message: _Message) -> list[Event]:
        index, size = message.unpack(_STATE)
        self._idle_ring(index).size = size
        return []

    def _set_vring_addr(self, message: _Message) -> list[Event]:
        index, _flags, descriptors, used, available, _log = message.unpack(_ADDRESSES)
        self._idle_ring(index).addresses = descriptors, available, used
        return []

    def _set_vring_base(self, message: _Message) -> list[Event]:
        index, base = message.unpack(_STATE)
        if base > 0xFFFF:
            raise VsockError(f"a ring's index of {base}")
        self._idle_ring(index).base = base
        return []

    def _get_vring_base(self, message: _Message) -> list[Event]:
        index, _ = message.unpack(_STATE)
        ring = self._ring(index)
        events = self._stop(index)
        if ring.kick is not None:
            self.garbage.append(ring.kick)
            ring.kick = None
        return [*events, self._reply(message, _STATE.pack(index, ring.base))]

    def _set_vring_kick(self, message: _Message) -> list[Event]:
        index, descriptor = self._ring_descriptor(message)
        ring = self._idle_ring(index)
        if descriptor is None:
            raise VsockError("a ring without a kick descriptor, which would have to be polled")
        if ring.kick is not None:
            self.garbage.append(ring.kick)
        ring.kick = descriptor
        if Feature.PROTOCOL_FEATURES not in self._features:
            ring.enabled = True
        return self._start(index)

    def _set_vring_call(self, message: _Message) -> list[Event]:
        index, descriptor = self._ring_descriptor(message)
        ring = self._ring(index)
        if ring.call is not None:
            self.garbage.append(ring.call)
        ring.call = descriptor
        return [CallChanged(index, descriptor)]

    def _set_vring_err(self, message: _Message) -> list[Event]:
        self._ring_descriptor(message)
        return []

    def _set_vring_enable(self, message: _Message) -> list[Event]:
        index, enabled = message.unpack(_STATE)
        self._ring(index).enabled = bool(enabled)
        return self._start(index) if enabled else self._stop(index)

    def _get_config(self, message: _Message) -> list[Event]:
        payload = message.payload
        if len(payload) < _CONFIG.size:
            raise VsockError("a configuration request that is cut short")
        offset, size, flags = _CONFIG.unpack(payload[: _CONFIG.size])
        if size != len(payload) - _CONFIG.size:
            raise VsockError(f"a configuration request for {size} bytes with room for {len(payload) - _CONFIG.size}")
        content = self._config[offset : offset + size].ljust(size, b"\0")
        return [self._reply(message, _CONFIG.pack(offset, size, flags) + content)]

    def _ring_descriptor(self, message: _Message) -> tuple[int, int | None]:
        """The ring that an eventfd is for, and the eventfd, which is the ring's from now on."""
        (value,) = message.unpack(_U64)
        self._ring(value & _RING_MASK)
        if value & _NO_DESCRIPTOR:
            return value & _RING_MASK, None
        if len(message.descriptors) != 1:
            raise VsockError(f"vhost-user request {message.request} with {len(message.descriptors)} descriptors")
        if message.request == Request.SET_VRING_ERR:
            return value & _RING_MASK, None
        return value & _RING_MASK, message.descriptors.pop()

    def _start(self, index: int) -> list[Event]:
        ring = self._ring(index)
        if ring.running or not ring.enabled or ring.kick is None:
            return []
        if ring.addresses is None or Feature.VERSION_1 not in self._features:
            raise VsockError(f"ring {index} was started before it was set up")
        layout = RingLayout(ring.size, *ring.addresses)
        layout.check(self._map)
        ring.running = True
        return [RingStarted(index, layout, ring.base, self._features, self._map, ring.kick, ring.call)]

    def _stop(self, index: int) -> list[Event]:
        ring = self._ring(index)
        if not ring.running:
            return []
        ring.base = self._ring_base(index)
        ring.running = False
        return [RingStopped(index)]

    def _stop_all(self) -> list[Event]:
        return [event for index in range(_RINGS) for event in self._stop(index)]
