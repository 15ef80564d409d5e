"""Shows that filling the guest's buffers has an end, however fast a guest gives them back."""

from array import array

from interpreter.vsock.device import DeviceProtocol
from interpreter.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Header, Op
from interpreter.vsock.ring import MAX_DATA, Ring
from interpreter.vsock.virtqueue import Virtqueue

from .guest import GUEST_BASE, GUEST_CID, ByteMemory, DriverRing

SIZE = 128
BUFFER = 4096


class TirelessDriver(ByteMemory):
    """Memory whose driver gives every buffer back at the moment when it gets it."""

    def __init__(self) -> None:
        super().__init__(2 * 1024 * 1024)
        self.driver = DriverRing(self.data, 0x1000, self.base, SIZE)
        self.used = 0
        self.offer()

    def offer(self) -> None:
        while self.driver.free:
            slot = self.driver.free[0]
            self.driver.add([(GUEST_BASE + 0x10000 + slot * BUFFER, BUFFER)], write=True)

    def write(self, ranges: "array[int]", data: bytes | bytearray) -> None:
        super().write(ranges, data)
        self.used += len(self.driver.reap())
        self.offer()


def test_a_guest_that_gives_buffers_back_at_once_does_not_hold_up_other_work() -> None:
    memory = TirelessDriver()
    queue = Virtqueue(
        memory,
        memory.map,
        memory.driver.layout,
        writable=True,
        min_chain=HEADER_SIZE,
        max_chain=MAX_DATA,
        event_idx=True,
        indirect=False,
    )
    protocol = DeviceProtocol(GUEST_CID)
    connection = protocol.connect(7)
    ring = Ring(queue, -1, None)
    ring.fill(protocol)
    protocol.receive(Header(GUEST_CID, HOST_CID, 7, connection.local_port, 0, STREAM, Op.RESPONSE, 0, 1 << 30, 0), b"")
    total = 8 * 1024 * 1024
    protocol.write(connection, bytes(total))
    turns = 0
    while ring.fill(protocol):
        turns += 1
    assert connection.unsent == 0
    assert turns >= total // (1024 * 1024), "no turn moved more than a MiB"
    assert memory.used > total // BUFFER
