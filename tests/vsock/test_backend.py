"""Shows the whole device against a front end and a driver that speak as QEMU 7.2 and Linux do, over a real socket,
real eventfds and real process_vm calls: streams both ways, back-pressure, stopping and starting, and that each way of
misbehaving closes the device with a clear error, resets all streams, and leaves no descriptor behind."""

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import struct
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from interpreter.errors import GuestMisbehaved, MachineDied, VsockError
from interpreter.vsock.backend import VsockDevice
from interpreter.vsock.device import MAX_REPLIES
from interpreter.vsock.packet import HOST_CID, STREAM, Header, Op
from interpreter.vsock.ring import MIN_RECEIVE
from interpreter.vsock.streams import HIGH_WATER, VsockTransport
from interpreter.vsock.vhost_user import Feature

from .guest import ALL_FEATURES, GUEST_BASE, GUEST_CID, PLAIN_FEATURES, FakeMachine, echo_guest
from .streamed import StreamedDevice

ROOT = Path(__file__).parents[2]
WINDOW = 256 * 1024


def open_descriptors() -> set[tuple[str, str]]:
    """The sockets and eventfds of this process; other tests' services open and close files at any time."""
    found: set[tuple[str, str]] = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add((path.name, str(path.readlink())))
    return {(number, target) for number, target in found if target.startswith(("socket:", "anon_inode:", "/memfd:"))}


@pytest.fixture(autouse=True)
async def _no_descriptor_is_left() -> AsyncGenerator[None]:  # pyright: ignore[reportUnusedFunction]
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await turn()


@asynccontextmanager
async def machine_and_device(
    features: Feature = ALL_FEATURES, *, plug: bool = True, size: int = 128
) -> AsyncGenerator[tuple[FakeMachine, StreamedDevice]]:
    ours, theirs = socket.socketpair()
    machine = FakeMachine(theirs, features, size)
    try:
        async with StreamedDevice(ours, pid=os.getpid(), window=WINDOW) as device:
            if plug:
                await machine.plug()
            yield machine, device
    finally:
        machine.close()


async def connected(
    machine: FakeMachine, device: StreamedDevice, *, buf_alloc: int = 256 * 1024
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """A stream that the host opened to port 7; and the host's port."""
    opening = asyncio.ensure_future(device.dial(7))
    header, _ = await machine.expect(Op.REQUEST)
    await machine.send(Op.RESPONSE, 7, header.src_port, buf_alloc=buf_alloc)
    reader, writer = await opening
    return reader, writer, header.src_port


@asynccontextmanager
async def echoing(machine: FakeMachine) -> AsyncGenerator[None]:
    task = asyncio.create_task(echo_guest(machine))
    try:
        yield
        assert not task.done() or task.result() is None
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def exchange(device: StreamedDevice, data: bytes, port: int = 7) -> bytes:
    """Send data, end our direction, and read what comes back."""
    reader, writer = await device.dial(port)

    async def send() -> None:
        for start in range(0, len(data), 50_000):
            writer.write(data[start : start + 50_000])
            await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(send())
    answer = await reader.read()
    await sending
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_cid_is_in_the_configuration() -> None:
    async with machine_and_device(plug=False) as (machine, _):
        assert await machine.negotiate() == GUEST_CID


@pytest.mark.parametrize(
    "features",
    [
        ALL_FEATURES,
        PLAIN_FEATURES,
        PLAIN_FEATURES | Feature.EVENT_IDX,
        PLAIN_FEATURES | Feature.PROTOCOL_FEATURES | Feature.INDIRECT_DESC,
    ],
)
async def test_data_comes_back_whole_under_each_set_of_features(features: Feature) -> None:
    data = random.Random(1).randbytes(1_500_000)
    async with machine_and_device(features) as (machine, device), echoing(machine):
        assert await exchange(device, data) == data
        await until(lambda: not device.protocol.connections)


async def test_fifty_streams_at_once_to_another_process_arrive_whole() -> None:
    ours, theirs = socket.socketpair()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.vsock.fake_qemu", str(theirs.fileno())),
        pass_fds=(theirs.fileno(),),
        cwd=ROOT,
    )
    theirs.close()
    try:
        async with StreamedDevice(ours, pid=child.pid) as device:
            pieces = [random.Random(seed).randbytes(200_000) for seed in range(50)]
            answers = await asyncio.gather(*(exchange(device, piece) for piece in pieces))
            for piece, answer in zip(pieces, answers, strict=True):
                assert hashlib.sha256(answer).digest() == hashlib.sha256(piece).digest()
            reader, _ = await device.dial(7)
            child.kill()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            await device.wait_closed()
            assert isinstance(device.failure, MachineDied)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_the_guest_dials_and_is_told_apart_by_its_port() -> None:
    async with machine_and_device() as (machine, device), device.listen(1000) as dialled:
        for port in (31, 32):
            await machine.send(Op.REQUEST, port, 1000)
            await machine.expect(Op.RESPONSE)
            await machine.send(Op.RW, port, 1000, b"hello %d" % port)
        for port in (31, 32):
            opened = await dialled.get()
            writer = await opened.opened
            assert await opened.reader.readexactly(8) == b"hello %d" % port
            assert writer.get_extra_info("peername") == (GUEST_CID, port)
            assert writer.get_extra_info("sockname") == (HOST_CID, 1000)
            writer.transport.abort()
            await machine.expect(Op.RST)


async def test_a_port_that_is_not_listened_on_and_a_listener_that_says_no_refuse() -> None:
    async with machine_and_device() as (machine, device):
        await machine.send(Op.REQUEST, 1, 1000)
        await machine.expect(Op.RST)
        device.protocol.listening.add(1000)
        await machine.send(Op.REQUEST, 2, 1000)
        header, _ = await machine.expect(Op.RST)
        assert header.dst_port == 2
        assert not device.protocol.connections


async def test_two_devices_begin_at_different_ports_of_the_host() -> None:
    """A guest that still closes a stream to the device before would answer its port with a reset."""
    ports: set[int] = set()
    for _ in range(3):
        async with machine_and_device() as (machine, device):
            _, writer, port = await connected(machine, device)
            ports.add(port)
            writer.transport.abort()
    assert len(ports) == 3


async def test_a_port_that_refuses_is_an_error_and_a_silent_one_can_be_given_up() -> None:
    async with machine_and_device() as (machine, device):
        opening = asyncio.ensure_future(device.dial(7))
        header, _ = await machine.expect(Op.REQUEST)
        await machine.send(Op.RST, 7, header.src_port)
        with pytest.raises(ConnectionResetError, match="refused"):
            await opening
        silent = device.connect(7, asyncio.Protocol())
        await machine.expect(Op.REQUEST)
        silent.abort()
        await machine.expect(Op.RST)
        assert not device.protocol.connections
        assert not device._transports


async def test_closing_flushes_and_ends_both_directions() -> None:
    async with machine_and_device() as (machine, device):
        _, writer, port = await connected(machine, device)
        writer.write(b"last words")
        writer.close()
        await writer.wait_closed()
        assert (await machine.expect(Op.RW))[1] == b"last words"
        header, _ = await machine.expect(Op.SHUTDOWN)
        assert header.flags == 3
        await machine.send(Op.RST, 7, port, fwd_cnt=10)
        await machine.send(Op.CREDIT_REQUEST, 7, port)
        await machine.expect(Op.RST)
        assert not device._transports


async def test_a_guest_that_closes_ends_the_stream_after_its_data() -> None:
    async with machine_and_device() as (machine, device):
        reader, writer, port = await connected(machine, device)
        await machine.send(Op.RW, 7, port, b"x" * 1000)
        await machine.send(Op.SHUTDOWN, 7, port, flags=3)
        await machine.expect(Op.RST)
        assert await reader.read() == b"x" * 1000
        await writer.wait_closed()
        assert writer.is_closing()


async def test_a_guest_that_resets_breaks_the_stream() -> None:
    async with machine_and_device() as (machine, device):
        reader, writer, port = await connected(machine, device)
        await machine.send(Op.RST, 7, port)
        with pytest.raises(ConnectionResetError, match="reset"):
            await reader.read()
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await writer.drain()


async def test_a_reader_that_stops_reading_holds_the_guest_back() -> None:
    """What is held: the StreamReader's two limits, and a window for which the guest gets no credit."""
    async with machine_and_device() as (machine, device):
        reader, writer, port = await connected(machine, device)
        sent, forwarded, credit = 0, 0, WINDOW
        block = bytes(32 * 1024)
        while credit >= len(block):
            await machine.send(Op.RW, 7, port, block)
            sent += len(block)
            credit -= len(block)
            if credit < len(block):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        header, _ = await machine.expect(Op.CREDIT_UPDATE)
                        forwarded = header.fwd_cnt
                        credit = header.buf_alloc - (sent - forwarded)
        assert sent <= 4 * WINDOW
        left = sent
        while left:
            left -= len(await reader.read(left))
        async with asyncio.timeout(20):
            while forwarded <= sent - WINDOW // 2:
                header, _ = await machine.expect(Op.CREDIT_UPDATE)
                forwarded = header.fwd_cnt
        writer.transport.abort()


async def test_a_guest_without_credit_holds_the_writer_back() -> None:
    async with machine_and_device() as (machine, device):
        _, writer, port = await connected(machine, device, buf_alloc=10_000)
        writer.write(bytes(HIGH_WATER + 20_000))
        draining = asyncio.ensure_future(writer.drain())
        received = 0
        while received < 10_000:
            received += len((await machine.expect(Op.RW))[1])
        assert not draining.done()
        assert writer.transport.get_write_buffer_size() == HIGH_WATER + 10_000
        await machine.send(Op.CREDIT_UPDATE, 7, port, buf_alloc=HIGH_WATER, fwd_cnt=10_000)
        await draining
        writer.transport.abort()


async def test_a_guest_without_receive_buffers_holds_the_writer_back() -> None:
    async with machine_and_device() as (machine, device):
        _, writer, _ = await connected(machine, device, buf_alloc=1 << 30)
        writer.write(bytes(128 * 4096 + HIGH_WATER + 1))
        draining = asyncio.ensure_future(writer.drain())
        await until(lambda: writer.transport.get_write_buffer_size() < 128 * 4096 + HIGH_WATER + 1)
        assert not draining.done()
        reading = asyncio.ensure_future(_drop_packets(machine))
        await draining
        reading.cancel()
        writer.transport.abort()


async def _drop_packets(machine: FakeMachine) -> None:
    while True:
        await machine.packet()


async def test_a_flood_for_unknown_connections_is_read_no_faster_than_it_is_answered() -> None:
    async with machine_and_device() as (machine, device):
        flood = asyncio.ensure_future(_flood(machine))
        await until(lambda: device.protocol.replies_full)
        for _ in range(100):
            await turn()
        assert len(device.protocol._replies) <= MAX_REPLIES + machine.size
        answered = 0
        while answered < 2000:
            await machine.expect(Op.RST)
            answered += 1
        await flood


async def _flood(machine: FakeMachine) -> None:
    for port in range(2000):
        await machine.send(Op.RW, port, 5)


async def test_a_driver_that_lets_go_resets_streams_and_may_come_back() -> None:
    async with machine_and_device() as (machine, device):
        async with device.listen(1000) as dialled:
            reader, writer, _ = await connected(machine, device)
            bases = await machine.stop()
            assert bases == [machine.rx.next_used + len(machine.rx.reap()), machine.tx.next_avail]
            with pytest.raises(ConnectionResetError, match="stopped"):
                await reader.read()
            writer.close()
            machine.new_rings()
            await machine.start()
            machine.post_buffers()
            await machine.send(Op.REQUEST, 9, 1000)
            await machine.expect(Op.RESPONSE)
            writer = await (await dialled.get()).opened
            assert writer.get_extra_info("peername") == (GUEST_CID, 9)
            await machine.stop()
        machine.new_rings()
        await machine.plug()
        async with echoing(machine):
            assert await exchange(device, b"plugged anew") == b"plugged anew"
        assert device.failure is None


async def test_rings_go_on_from_any_index() -> None:
    async with machine_and_device(plug=False) as (machine, device):
        machine.new_rings(start=65_500)
        await machine.negotiate()
        await machine.start(base=65_500)
        machine.post_buffers()
        data = random.Random(2).randbytes(600_000)
        async with echoing(machine):
            assert await exchange(device, data) == data


async def test_streams_wait_for_the_guests_driver() -> None:
    async with machine_and_device(plug=False) as (machine, device):
        opening = asyncio.ensure_future(exchange(device, b"early"))
        await asyncio.sleep(0)
        await machine.plug()
        async with echoing(machine):
            assert await opening == b"early"


async def test_closing_the_device_breaks_streams_and_those_that_are_opened() -> None:
    async with machine_and_device() as (machine, device):
        reader, _writer, _ = await connected(machine, device)
        opening = asyncio.ensure_future(device.dial(8))
        await machine.expect(Op.REQUEST)
        machine.sock.close()
        await device.wait_closed()
        assert isinstance(device.failure, MachineDied)
        with pytest.raises(ConnectionResetError):
            await opening
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_an_idle_device_leaves_the_loop_alone() -> None:
    async with machine_and_device() as (machine, device):
        _, writer, _ = await connected(machine, device)
        for _ in range(10):
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        scheduled = [handle for handle in getattr(loop, "_scheduled") if not handle.cancelled()]  # noqa: B009
        assert not [handle for handle in scheduled if "vsock" in repr(handle)]
        assert not [handle for handle in getattr(loop, "_ready") if "vsock" in repr(handle)]  # noqa: B009
        writer.transport.abort()


Lie = Callable[[FakeMachine, int], Awaitable[None]]


async def _header_alone(machine: FakeMachine, port: int) -> None:
    await machine.transmit(Header(GUEST_CID, HOST_CID, 7, port, 100, STREAM, Op.RW, 0, 0, 0))


async def _short_buffer(machine: FakeMachine, port: int) -> None:
    await machine.transmit(Header(GUEST_CID, HOST_CID, 7, port, 100, STREAM, Op.RW, 0, 0, 0), bytes(100), length=99)


async def _beyond_credit(machine: FakeMachine, port: int) -> None:
    for _ in range(64):
        await machine.send(Op.RW, 7, port, bytes(60_000))


async def _took_too_much(machine: FakeMachine, port: int) -> None:
    await machine.send(Op.CREDIT_UPDATE, 7, port, fwd_cnt=1)


async def _outside_memory(machine: FakeMachine, port: int) -> None:
    machine.tx.add([(GUEST_BASE - 4096, 44)], write=False)
    machine.kick(1)


async def _loop(machine: FakeMachine, port: int) -> None:
    machine.tx.put_descriptor(5, GUEST_BASE, 44, 1, 5)
    machine.tx.publish(5)
    machine.kick(1)


async def _index_ahead(machine: FakeMachine, port: int) -> None:
    machine.tx.put16(machine.tx.available + 2, machine.tx.next_avail + 1000)
    os.eventfd_write(machine.kicks[1], 1)


async def _shorter_than_a_header(machine: FakeMachine, port: int) -> None:
    machine.tx.add([(GUEST_BASE, 43)], write=False)
    machine.kick(1)


async def _small_receive_buffers(machine: FakeMachine, port: int) -> None:
    """Each costs the host as much as one of 4 KiB, and holds next to nothing."""
    machine.new_rings()
    await machine.stop()
    await machine.start()
    for _ in range(8):
        machine.rx.add([(GUEST_BASE + 0x100000, MIN_RECEIVE - 1)], write=True)
    await machine.send(Op.RW, 1, 2)


async def _read_only_receive_buffer(machine: FakeMachine, port: int) -> None:
    machine.rx.put16(machine.rx.available + 2, machine.rx.next_avail)
    for head in list(machine.rx.chains):
        machine.rx.put_descriptor(head, GUEST_BASE, 4096, 0, 0)
    await machine.stop()
    await machine.start()
    await machine.send(Op.RW, 1, 2)


async def _nonsense_front_end(machine: FakeMachine, port: int) -> None:
    machine.sock.send(struct.pack("<III", 77, 1, 0))


LIES: dict[str, Lie] = {
    "data-missing": _header_alone,
    "data-cut-short": _short_buffer,
    "beyond-credit": _beyond_credit,
    "took-more-than-was-sent": _took_too_much,
    "outside-memory": _outside_memory,
    "loop": _loop,
    "index-ahead": _index_ahead,
    "shorter-than-a-header": _shorter_than_a_header,
    "receive-buffers-too-small": _small_receive_buffers,
    "receive-buffer-read-only": _read_only_receive_buffer,
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_guest_that_lies_loses_its_device(lie: Lie) -> None:
    async with machine_and_device() as (machine, device):
        reader, _, port = await connected(machine, device)
        lying = asyncio.ensure_future(lie(machine, port))
        await device.wait_closed()
        assert isinstance(device.failure, GuestMisbehaved)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        lying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await lying


async def test_a_front_end_that_talks_nonsense_loses_its_device() -> None:
    async with machine_and_device() as (machine, device):
        await _nonsense_front_end(machine, 0)
        await device.wait_closed()
        assert isinstance(device.failure, VsockError)


async def test_a_ring_must_be_given_eventfds() -> None:
    async with machine_and_device(plug=False) as (machine, device):
        await machine.negotiate()
        os.close(machine.kicks[0])
        machine.kicks[0] = os.open("/dev/zero", os.O_RDONLY)
        await machine.start()
        await device.wait_closed()
        assert "no eventfd" in str(device.failure)


async def test_a_machine_that_is_gone_is_no_machine() -> None:
    child = await asyncio.create_subprocess_exec("true")
    await child.wait()
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(MachineDied):
        async with StreamedDevice(ours, pid=child.pid):
            pass


async def test_small_packets_that_nobody_reads_are_held_in_one_piece() -> None:
    async with machine_and_device() as (machine, device):
        reader, writer, port = await connected(machine, device)
        transport = writer.transport
        assert isinstance(transport, VsockTransport)
        transport.pause_reading()
        for index in range(500):
            await machine.send(Op.RW, 7, port, b"%03d" % index)
        await until(lambda: len(transport._held) == 1500)
        transport.resume_reading()
        assert await reader.readexactly(1500) == b"".join(b"%03d" % index for index in range(500))
        transport.abort()


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF, 1 << 32])
def test_reserved_context_ids_are_refused(cid: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(VsockError):
        VsockDevice(ours, pid=os.getpid(), guest_cid=cid, on_request=lambda *_: None)
