"""Shows that a stream through a device's process ends for the service as it ended for the guest, and the other way
round: by a reset, in good order, or in one direction; that whoever is slow holds the other side back; and that what a
device says beyond what there is to say costs it its device."""

import asyncio
import contextlib
import os
import random
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from interpreter.device import stream, wire
from interpreter.device.client import DeviceClient
from interpreter.device.wire import Kind, Message
from interpreter.errors import GuestMisbehaved, MachineDied, VsockConnectError, VsockError
from interpreter.vsock import linger
from interpreter.vsock.packet import HOST_CID, Op
from tests.vsock.guest import GUEST_CID, FakeMachine, echo_guest

from .linked import WINDOW, linked


def open_sockets() -> int:
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(path.readlink()).startswith("socket:")
    return found


@pytest.fixture(autouse=True)
async def _no_socket_is_left() -> AsyncGenerator[None]:  # pyright: ignore[reportUnusedFunction]
    before = open_sockets()
    yield
    assert open_sockets() <= before


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0)


async def connected(
    machine: FakeMachine, client: DeviceClient, *, buf_alloc: int = WINDOW
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
    """A stream that the service opened to port 7; and the host's port."""
    opening = asyncio.ensure_future(client.connect(7))
    header, _ = await machine.expect(Op.REQUEST)
    await machine.send(Op.RESPONSE, 7, header.src_port, buf_alloc=buf_alloc)
    reader, writer = await opening
    return reader, writer, header.src_port


async def exchange(client: DeviceClient, data: bytes) -> bytes:
    reader, writer = await client.connect(7)

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


async def test_data_comes_back_whole_over_many_streams_at_once() -> None:
    pieces = [random.Random(seed).randbytes(700_000) for seed in range(8)]
    async with linked() as (machine, client, _):
        echoing = asyncio.create_task(echo_guest(machine))
        assert await asyncio.gather(*(exchange(client, piece) for piece in pieces)) == pieces
        echoing.cancel()


async def test_a_guest_that_resets_breaks_the_stream_at_once() -> None:
    async with linked() as (machine, client, _):
        reader, writer, port = await connected(machine, client)
        await machine.send(Op.RST, 7, port)
        with pytest.raises(ConnectionResetError, match="the guest reset it"):
            await reader.read()
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await writer.drain()


async def test_a_guest_that_closes_ends_the_stream_after_its_data() -> None:
    async with linked() as (machine, client, _):
        reader, writer, port = await connected(machine, client)
        await machine.send(Op.RW, 7, port, b"x" * 1000)
        await machine.send(Op.SHUTDOWN, 7, port, flags=3)
        await machine.expect(Op.RST)
        assert await reader.read() == b"x" * 1000
        await writer.wait_closed()


async def test_what_the_guest_said_before_it_closed_is_read_also_when_nothing_can_be_written_any_more() -> None:
    async with linked() as (machine, client, _):
        reader, writer, port = await connected(machine, client)
        await machine.send(Op.RW, 7, port, b"why not")
        await machine.send(Op.SHUTDOWN, 7, port, flags=3)
        await machine.expect(Op.RST)
        for _ in range(20):
            writer.write(bytes(100_000))
            await asyncio.sleep(0)
        assert await reader.read() == b"why not"


async def test_a_guest_that_ends_one_direction_still_takes_the_other() -> None:
    async with linked() as (machine, client, _):
        reader, writer, port = await connected(machine, client)
        await machine.send(Op.SHUTDOWN, 7, port, flags=2)
        assert await reader.read() == b""
        writer.write(b"still there")
        assert (await machine.expect(Op.RW))[1] == b"still there"
        writer.write_eof()
        header, _ = await machine.expect(Op.SHUTDOWN)
        assert header.flags == 2
        writer.transport.abort()


async def test_a_service_that_ends_one_direction_still_takes_the_other() -> None:
    async with linked() as (machine, client, _):
        reader, writer, port = await connected(machine, client)
        writer.write_eof()
        header, _ = await machine.expect(Op.SHUTDOWN)
        assert header.flags == 2
        await machine.send(Op.RW, 7, port, b"answer")
        assert await reader.readexactly(6) == b"answer"
        writer.close()
        header, _ = await machine.expect(Op.SHUTDOWN)
        assert header.flags == 3


async def test_a_service_that_closes_ends_both_directions_after_its_data() -> None:
    async with linked() as (machine, client, relay):
        _, writer, port = await connected(machine, client)
        writer.write(b"last words")
        writer.close()
        await writer.wait_closed()
        assert (await machine.expect(Op.RW))[1] == b"last words"
        flags = 0
        while flags != 3:
            flags |= (await machine.expect(Op.SHUTDOWN))[0].flags
        await machine.send(Op.RST, 7, port, fwd_cnt=10)
        await until(lambda: not relay._device.protocol.connections)
        assert not relay._streams
        assert not client._streams


async def test_a_service_that_resets_resets_the_guests_stream() -> None:
    async with linked() as (machine, client, relay):
        _, writer, _ = await connected(machine, client)
        writer.write(b"x")
        await machine.expect(Op.RW)
        writer.transport.abort()
        await machine.expect(Op.RST)
        assert not relay._device.protocol.connections


async def test_an_end_is_told_before_it_is_read_whichever_way_it_came() -> None:
    """The control socket is read when a stream's end is: no reset is ever taken for a clean end."""
    async with linked() as (machine, client, _):
        opened = [await connected(machine, client) for _ in range(16)]
        for index, (_, _, port) in enumerate(opened):
            await machine.send(Op.RW, 7, port, b"data")
            await machine.send(*((Op.RST, 7, port) if index % 2 else (Op.SHUTDOWN, 7, port)), flags=3)
        for index, (reader, _, _) in enumerate(opened):
            if index % 2:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            else:
                assert await reader.read() == b"data"


async def test_a_port_that_refuses_and_one_that_is_silent_are_errors() -> None:
    async with linked() as (machine, client, relay):
        opening = asyncio.ensure_future(client.connect(7))
        header, _ = await machine.expect(Op.REQUEST)
        await machine.send(Op.RST, 7, header.src_port)
        with pytest.raises(VsockConnectError, match="refused"):
            await opening
        with pytest.raises(VsockConnectError, match="did not answer"):
            await client.connect(7, timeout=0.05)
        await machine.expect(Op.REQUEST)
        await machine.expect(Op.RST)
        assert not relay._device.protocol.connections
        assert not client._opening


async def test_the_guest_dials_and_is_told_apart_by_its_port() -> None:
    async with linked() as (machine, client, _), client.listen(1000) as listener:
        for port in (31, 32):
            await machine.send(Op.REQUEST, port, 1000)
            await machine.expect(Op.RESPONSE)
            await machine.send(Op.RW, port, 1000, b"hello %d" % port)
        for port in (31, 32):
            reader, writer, peer = await listener.accept()
            assert peer == port
            assert await reader.readexactly(8) == b"hello %d" % port
            assert writer.get_extra_info("peername") == (GUEST_CID, port)
            assert writer.get_extra_info("sockname") == (HOST_CID, 1000)
            writer.transport.abort()
            await machine.expect(Op.RST)


async def test_a_full_backlog_and_a_closed_listener_refuse() -> None:
    async with linked() as (machine, client, _):
        async with client.listen(1000, backlog=1) as listener:
            with pytest.raises(VsockError):
                async with client.listen(1000):
                    pass
            await machine.send(Op.REQUEST, 1, 1000)
            await machine.expect(Op.RESPONSE)
            await machine.send(Op.REQUEST, 2, 1000)
            header, _ = await machine.expect(Op.RST)
            assert header.dst_port == 2
            _, writer, _ = await listener.accept()
            await until(lambda: not client._control._queue)
            await asyncio.sleep(0)
            await machine.send(Op.REQUEST, 3, 1000)
            header, _ = await machine.expect(Op.RESPONSE)
            assert header.dst_port == 3, "there is room again"
            writer.transport.abort()
            await machine.expect(Op.RST)
        header, _ = await machine.expect(Op.RST)
        assert header.dst_port == 3, "nobody accepted it"
        await machine.send(Op.REQUEST, 4, 1000)
        await machine.expect(Op.RST)


async def test_a_reader_that_stops_reading_holds_the_guest_back() -> None:
    """What is held: the reader's two limits, two sockets' buffers, and a window for which the guest gets no credit."""
    async with linked() as (machine, client, _):
        reader, writer, port = await connected(machine, client)
        sent, credit = 0, WINDOW
        block = bytes(32 * 1024)
        with contextlib.suppress(TimeoutError):
            while True:
                while credit >= len(block):
                    await machine.send(Op.RW, 7, port, block)
                    sent += len(block)
                    credit -= len(block)
                async with asyncio.timeout(1):
                    header, _ = await machine.expect(Op.CREDIT_UPDATE)
                    credit = header.buf_alloc - (sent - header.fwd_cnt)
        assert sent < 2 * 1024 * 1024
        left = sent
        while left:
            left -= len(await reader.read(left))
        writer.transport.abort()


async def test_a_guest_without_credit_holds_the_writer_back() -> None:
    async with linked() as (machine, client, _):
        _, writer, port = await connected(machine, client, buf_alloc=10_000)
        written = 0
        with contextlib.suppress(TimeoutError):
            while written < 8 * 1024 * 1024:
                writer.write(bytes(100_000))
                written += 100_000
                async with asyncio.timeout(1):
                    await writer.drain()
        assert written < 2 * 1024 * 1024
        received = 0
        while received < written:
            received += len((await machine.expect(Op.RW))[1])
            await machine.send(Op.CREDIT_UPDATE, 7, port, buf_alloc=WINDOW, fwd_cnt=received)
        await writer.drain()
        writer.transport.abort()


async def test_a_stream_that_was_closed_and_that_nobody_reads_is_reset_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "LINGER", 0.05)
    async with linked() as (machine, client, relay):
        _, writer, _ = await connected(machine, client, buf_alloc=10)
        writer.write(bytes(8 * 1024 * 1024))
        writer.close()
        await until(lambda: not client._streams and not relay._streams)
        while Op((await machine.packet())[0].op) is not Op.RST:
            continue


async def test_without_its_service_a_device_resets_its_streams_and_refuses_new_ones() -> None:
    async with linked() as (machine, client, relay):
        await connected(machine, client)
        async with client.listen(1000):
            await client.__aexit__(None, None, None)
            await machine.expect(Op.RST)
            await machine.send(Op.REQUEST, 9, 1000)
            header, _ = await machine.expect(Op.RST)
            assert header.dst_port == 9
        assert relay._device.failure is None
        assert not relay._posted


async def test_an_end_without_a_word_is_no_clean_end() -> None:
    """A process that is killed lets go of its sockets in any order."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        async with DeviceClient(os.getpid(), near, GUEST_CID) as client:
            opening = asyncio.ensure_future(client.connect(7))
            await asyncio.sleep(0)
            data, (descriptor,), _, _ = socket.recv_fds(far, wire.MAX_MESSAGE, 1)
            with socket.socket(fileno=descriptor) as theirs:
                far.send(Message(Kind.ESTABLISHED, wire.parse(data).stream, 9).pack())
                reader, _ = await opening
                theirs.send(b"half of it")
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_the_cause_of_a_devices_end_is_told_and_breaks_what_waits() -> None:
    async with linked() as (machine, client, _):
        reader, _, port = await connected(machine, client)
        async with client.listen(5) as listener:
            accepting = asyncio.ensure_future(listener.accept())
            opening = asyncio.ensure_future(client.connect(8))
            await machine.expect(Op.REQUEST)
            await machine.send(Op.CREDIT_UPDATE, 7, port, fwd_cnt=1)
            await client.wait_closed()
            assert isinstance(client.failure, GuestMisbehaved)
            for waiting, error in ((opening, VsockConnectError), (accepting, GuestMisbehaved)):
                with pytest.raises(error):
                    await waiting
        with pytest.raises(ConnectionResetError):
            await reader.read()
        with pytest.raises(VsockConnectError):
            await client.connect(8)


async def test_a_machine_that_lets_go_of_its_device_is_told() -> None:
    async with linked() as (machine, client, _):
        machine.sock.close()
        await client.wait_closed()
        assert isinstance(client.failure, MachineDied)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"short",
        bytes(wire.MAX_MESSAGE + 1),
        b"\xff" * 9,
        Message(Kind.CONNECT, 1, 7).pack(),
        [Message(Kind.RESET, 77).pack()] * 4,
    ],
    ids=["end", "short", "long", "unknown", "not-its-to-say", "more-than-there-is-to-say"],
)
async def test_a_device_that_does_not_keep_to_what_it_may_say_has_failed(said: bytes | list[bytes]) -> None:
    """Whoever took QEMU over may have taken its device over as well."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        async with DeviceClient(os.getpid(), near, GUEST_CID) as client:
            for data in said if isinstance(said, list) else [said]:
                if data:
                    far.send(data)
                else:
                    far.close()
            async with asyncio.timeout(20):
                await client.wait_closed()
            assert isinstance(client.failure, VsockError)


async def test_a_device_that_makes_its_end_of_a_stream_blocking_blocks_nobody_else() -> None:
    """Flags belong to an end, and the service's end is never given away."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    async with DeviceClient(os.getpid(), near, GUEST_CID) as client:
        far.setblocking(False)
        opening = asyncio.ensure_future(client.connect(7))
        await asyncio.sleep(0)
        data, (descriptor,), _, _ = socket.recv_fds(far, wire.MAX_MESSAGE, 1)
        with socket.socket(fileno=descriptor) as theirs, far:
            theirs.setblocking(True)
            far.send(Message(Kind.ESTABLISHED, wire.parse(data).stream, 9).pack())
            reader, writer = await opening
            writer.write(bytes(8 * 1024 * 1024))
            assert writer.transport.get_write_buffer_size() > stream.HIGH_WATER
            waiting = asyncio.ensure_future(reader.read(1))
            await asyncio.sleep(0)
            assert not waiting.done()
            waiting.cancel()
            writer.transport.abort()
