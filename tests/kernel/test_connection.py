"""A kernel's connection: what is too much is left out and told, one that floods leaves others their turn."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest

from interpreter.errors import GuestMisbehaved
from interpreter.gateway.clients import KernelClient
from interpreter.kernel.channels import KernelChannels
from interpreter.kernel.connection import Inbox, KernelConnection
from interpreter.kernel.framing import FrameStream
from interpreter.kernel.memory import Room, SessionMemory
from interpreter.kernel.message import Codec
from interpreter.kernel.websocket import ClientMessage
from kernel_guest.frames import MAX_CONTROL, MAX_MESSAGE, Frame, Kind, encode

SECONDS = 30.0
MIB = 1024 * 1024
CODEC = Codec(b"key", "session")


@dataclass
class Relay:
    """The guest's end of a kernel's stream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    stream: FrameStream

    def send(self, channel: str, parts: list[bytes]) -> None:
        self.writer.write(encode(Frame(Kind.MESSAGE, {"channel": channel, "parts": parts})))


@pytest.fixture
async def relay() -> AsyncGenerator[Relay]:
    ours, theirs = socket.socketpair()
    stream = FrameStream(*await asyncio.open_connection(sock=ours), limit=MAX_MESSAGE)
    reader, writer = await asyncio.open_connection(sock=theirs, limit=MAX_MESSAGE)
    yield Relay(reader, writer, stream)
    writer.close()
    stream.writer.close()


@pytest.fixture
async def connection(relay: Relay) -> AsyncGenerator[KernelConnection]:
    connection = KernelConnection(KernelChannels(relay.stream), CODEC)
    receiving = asyncio.create_task(connection.receive())
    yield connection
    receiving.cancel()


@pytest.mark.parametrize(
    "value", [b"[" + b"0," * 1_000_000 + b"0]", b"[" + b"{}," * 1_000_000 + b"{}]", b"[" * 200 + b"]" * 200]
)
async def test_an_output_that_is_too_much_is_left_out_and_said_to_be(
    relay: Relay, connection: KernelConnection, value: bytes
) -> None:
    request = CODEC.request("execute_request", {})
    parent = CODEC.serialise(request)[2]
    header = b'{"msg_id": "1", "msg_type": "display_data"}'
    with connection.replies(request) as inbox:
        for content in (b'{"data": {"application/json": ' + value + b'}, "metadata": {}}', b'{"data": {}}'):
            relay.send("iopub", CODEC.signed([header, parent, b"{}", content]))
        async with asyncio.timeout(SECONDS):
            (_, notice), (_, after) = await inbox.get(), await inbox.get()
    assert (notice.type, notice.content["name"], notice.parent_id) == ("stream", "stderr", request.header.msg_id)
    assert "left out: the display_data has more than" in notice.content["text"]
    assert after.content == {"data": {}}


async def test_a_reply_that_is_too_much_is_told_to_who_waits_for_it(relay: Relay, connection: KernelConnection) -> None:
    request = CODEC.request("execute_request", {})
    parts = [b'{"msg_id": "1", "msg_type": "execute_reply"}', CODEC.serialise(request)[2], b"{}", b"[" * 1000]
    relay.send("shell", CODEC.signed(parts))
    with pytest.raises(GuestMisbehaved, match="execute_reply has more than"):
        await connection.ask("shell", request, timeout=SECONDS)


async def test_a_message_that_was_too_long_for_the_relay_is_told(relay: Relay, connection: KernelConnection) -> None:
    request = CODEC.request("execute_request", {})
    told = {"channel": "iopub", "left_out": 70_000_000, "parent": CODEC.serialise(request)[2]}
    with connection.replies(request) as inbox:
        relay.writer.write(encode(Frame(Kind.MESSAGE, told)))
        async with asyncio.timeout(SECONDS):
            _, notice = await inbox.get()
    assert notice.content["text"] == "[An output was left out: it has 70000000 bytes.]\n"
    assert notice.metadata == {"left_out": True}


async def test_what_waits_for_readers_is_bounded_in_bytes_and_one_always_fits() -> None:
    room = Room(10_000)
    slow, other = Inbox(room), Inbox(room)
    message = CODEC.request("status", {})
    await slow.put(("iopub", message), 50_000)
    waiting = asyncio.create_task(other.put(("iopub", message), 1))
    leaving = asyncio.create_task(slow.put(("iopub", message), 1))
    assert not (await asyncio.wait({waiting, leaving}, timeout=0.1))[0]
    assert await slow.get() == ("iopub", message)
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(waiting, leaving)
    # Who does not read any more keeps nobody waiting.
    blocked = [asyncio.create_task(one.put(("iopub", message), 10_000)) for one in (slow, other)]
    slow.close()
    async with asyncio.timeout(SECONDS):
        await blocked[0]
        await other.get()
        await blocked[1]
    other.close()
    assert room.held == 0


async def test_an_error_that_many_get_does_not_gather_what_they_were_at(
    relay: Relay, connection: KernelConnection
) -> None:
    request = CODEC.request("execute_request", {})
    with connection.replies(request) as inbox:
        relay.send("iopub", [b"no message"])
        depths: list[int] = []
        for get in (inbox.get, inbox.get, lambda: connection.send("shell", request), inbox.get):
            with pytest.raises(GuestMisbehaved) as caught:
                await get()
            depths.append(len(caught.traceback))
    assert depths[0] == depths[1] == depths[3]


async def test_a_stream_that_always_has_more_leaves_others_their_turn(relay: Relay) -> None:
    count = 1000
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    frames = encode(Frame(Kind.EVENT)) * count
    relay.stream.reader.feed_data(frames)
    running = asyncio.create_task(other())
    for _ in range(count):
        await relay.stream.receive()
    running.cancel()
    assert turns >= count // 20


async def test_a_frame_that_is_too_long_is_refused_before_it_is_read(relay: Relay) -> None:
    relay.stream = FrameStream(relay.stream.reader, relay.stream.writer)
    relay.writer.write((MAX_CONTROL + 1).to_bytes(4, "big"))
    with pytest.raises(GuestMisbehaved, match="announced a frame"):
        async with asyncio.timeout(SECONDS):
            await relay.stream.receive()


async def test_frames_of_streams_that_share_a_room_come_in_turn(relay: Relay) -> None:
    room = Room(1_000_000)
    relay.stream.share(room)
    frame = encode(Frame(Kind.EVENT, {"data": b"x" * 600_000}))
    room.take(600_000)
    relay.writer.write(frame)
    receiving = asyncio.create_task(relay.stream.receive())
    # Its length is known; what is under way elsewhere must be done with first.
    assert not (await asyncio.wait({receiving}, timeout=0.1))[0]
    assert room.held == 600_000
    room.give_back(600_000)
    async with asyncio.timeout(SECONDS):
        assert await receiving is not None
    assert room.held == len(frame) - 4
    relay.stream.close()
    assert room.held == 0


async def test_what_goes_to_a_guest_that_takes_nothing_is_counted_and_waits_its_turn_unless_it_is_short(
    relay: Relay, connection: KernelConnection
) -> None:
    memory = SessionMemory(24 * MIB)
    connection.share(memory)
    client = KernelClient("client", KernelChannels(relay.stream), CODEC, 1, memory)
    long = CODEC.request("execute_request", {"code": "x" * 3 * MIB})
    parts = CODEC.serialise(long)[2:]
    sending = [
        asyncio.create_task(connection.send("shell", long)),
        asyncio.create_task(client.send(ClientMessage("shell", "execute_request", parts))),
        asyncio.create_task(
            client.send(ClientMessage("control", "interrupt_request", [b'{"msg_id":"1"}', b"{}", b"{}", b"{}"]))
        ),
    ]
    for _ in range(10):
        await asyncio.sleep(0)
    # The second does not fit beside the first.
    assert 3 * MIB < memory.sent.held <= memory.held < 4 * MIB
    received = FrameStream(relay.reader, relay.writer, limit=MAX_MESSAGE)
    async with asyncio.timeout(SECONDS):
        kinds = [CODEC.verify(frame.body["parts"]).size for _ in range(1) if (frame := await received.receive())]
        kinds += [len(frame.body["parts"][-1]) for _ in range(2) if (frame := await received.receive())]
        await asyncio.gather(*sending)
    assert memory.sent.held == 0
    assert [size > 3 * MIB for size in kinds] == [True, False, True]
    await client.close("it is over")
    assert memory.held == 0
