"""Guests, and QEMUs that their guests took over, as programs: ``python -m tests.device.guests NAME DESCRIPTOR``."""

import asyncio
import contextlib
import os
import socket
import struct
import sys

from interpreter.vsock.packet import HEADER_SIZE, HOST_CID, STREAM, Header, Op
from tests.vsock.guest import GUEST_BASE, GUEST_CID, INDIRECT, FakeMachine, GuestEnded, echo_guest

_TABLES, _BUFFERS = 0x20000, 0x400000


async def small_packets(machine: FakeMachine) -> None:
    """As many packets without data as the ring takes, without end, for a port that nobody listens on."""
    await machine.plug()
    reading = asyncio.create_task(_forget(machine))
    while not reading.done():
        await machine.transmit(Header(GUEST_CID, HOST_CID, 7, 5, 0, STREAM, Op.CREDIT_UPDATE, 0, 0, 0))


async def long_chains(machine: FakeMachine) -> None:
    """Packets in chains of as many descriptors as a chain may have, each of a few bytes."""
    await machine.plug()
    reading = asyncio.create_task(_forget(machine))
    header = Header(GUEST_CID, HOST_CID, 7, 5, 0, STREAM, Op.CREDIT_UPDATE, 0, 0, 0).pack()
    machine.ram[_BUFFERS : _BUFFERS + HEADER_SIZE] = header
    parts = [(GUEST_BASE + _BUFFERS + 3 * n, 3 if n < 14 else 1) for n in range(16)]
    machine.tx.add(parts, write=False, table=_TABLES)
    # The same for all, written once: the device may be reading any of them.
    for head in range(machine.size):
        machine.tx.put_descriptor(head, GUEST_BASE + _TABLES, 16 * len(parts), INDIRECT, 0)
    while not reading.done():
        machine.tx.reap()
        while machine.tx.free:
            head = machine.tx.free.popleft()
            machine.tx.chains[head] = [head]
            machine.tx.publish(head)
        machine.kick(1)
        if not machine.tx.want_call():
            await machine.called[1].wait()
            machine.called[1].clear()


async def _forget(machine: FakeMachine) -> None:
    with contextlib.suppress(GuestEnded):
        while True:
            await machine.packet()


async def endless_chains(machine: FakeMachine) -> None:
    """A chain of 128 indirect descriptors, which no driver needs."""
    await machine.plug()
    size = 16 * 128
    for n in range(128):
        struct.pack_into("<QIHH", machine.ram, _TABLES + 16 * n, GUEST_BASE + _BUFFERS, 1, 1, n + 1)
    machine.tx.put_descriptor(0, GUEST_BASE + _TABLES, size, INDIRECT, 0)
    machine.tx.publish(0)
    os.eventfd_write(machine.kicks[1], 1)
    await asyncio.Event().wait()


async def blocking_call(machine: FakeMachine) -> None:
    """A QEMU that fills its device's eventfd and makes it blocking again: whoever writes to it next stands still."""
    await machine.plug()
    # Nobody may read it here, or it would not stay full.
    asyncio.get_running_loop().remove_reader(machine.calls[0])
    asyncio.get_running_loop().remove_reader(machine.calls[1])
    for call in machine.calls:
        os.set_blocking(call, False)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(call, 0xFFFF_FFFF_FFFF_FFFE)
            os.eventfd_write(call, 1)
        os.set_blocking(call, True)
    header = Header(GUEST_CID, HOST_CID, 7, 5, 0, STREAM, Op.CREDIT_UPDATE, 0, 0, 0).pack()
    machine.ram[_BUFFERS : _BUFFERS + HEADER_SIZE] = header
    machine.tx.put16(machine.tx.available + 4 + 2 * machine.tx.size, machine.tx.next_used)
    machine.tx.add([(GUEST_BASE + _BUFFERS, HEADER_SIZE)], write=False)
    os.eventfd_write(machine.kicks[1], 1)
    await asyncio.Event().wait()


async def many_descriptors(machine: FakeMachine) -> None:
    """A message of 4,107 bytes with descriptors beside every one of them."""
    message = struct.pack("<III", 5, 1, 4095) + bytes(4095)
    with contextlib.suppress(OSError):
        machine.sock.setblocking(True)
        for start in range(len(message)):
            socket.send_fds(machine.sock, [message[start : start + 1]], [0] * 8)
    await asyncio.Event().wait()


async def echo(machine: FakeMachine) -> None:
    """See `echo_guest`."""
    await machine.plug()
    await echo_guest(machine)


async def main(name: str, descriptor: int) -> None:
    machine = FakeMachine(socket.socket(fileno=descriptor))
    guests = (echo, small_packets, long_chains, endless_chains, blocking_call, many_descriptors)
    with contextlib.suppress(GuestEnded):
        await {guest.__name__: guest for guest in guests}[name](machine)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
