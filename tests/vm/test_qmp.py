"""Shows that what a QEMU says without being asked is neither kept nor lets others wait: it may be its guest's."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from interpreter.errors import MachineDied
from interpreter.vm.qmp import Qmp, connect_qmp, take_over_qmp

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


class FakeQemu:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, message: object) -> None:
        self.writer.write(json.dumps(message).encode() + b"\r\n")

    async def answer(self, value: object = None) -> None:
        asked = json.loads(await self.reader.read(65536))
        # The first command, which sets capabilities, has no id.
        self.say({"return": value if value is not None else {}, **{key: asked[key] for key in asked if key == "id"}})


@asynccontextmanager
async def talking() -> AsyncGenerator[tuple[Qmp, FakeQemu]]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    qemu = FakeQemu(reader, writer)
    qemu.say(GREETING)
    answering = asyncio.create_task(qemu.answer())
    ours.setblocking(False)
    async with connect_qmp(ours) as qmp:
        await answering
        yield qmp, qemu
        writer.close()


async def test_events_that_nobody_waits_for_are_not_kept() -> None:
    async with talking() as (qmp, qemu):
        for number in range(500):
            qemu.say({"event": "BLOCK_IO_ERROR", "data": {"n": number}, "timestamp": {}})
        answering = asyncio.create_task(qemu.answer("pong"))
        assert await qmp.execute("ping") == "pong"
        await answering
        assert qmp._client.events.empty()
        assert qmp._client.events.history == ()


async def test_a_qemu_that_talks_without_end_gets_one_message_each_turn_of_the_loop() -> None:
    async with talking() as (qmp, qemu):
        seen = 0

        def count(_: object) -> bool:
            nonlocal seen
            seen += 1
            return False

        qmp._client.events.event_filter = count
        qemu.writer.write(json.dumps({"event": "X", "data": {}, "timestamp": {}}).encode().join([b"", b"\r\n"]) * 1000)
        most = 0
        async with asyncio.timeout(20):
            while seen < 1000:
                before = seen
                await asyncio.sleep(0)
                most = max(most, seen - before)
        assert most == 1


async def test_a_message_without_end_ends_the_conversation() -> None:
    async with talking() as (qmp, qemu):
        asking = asyncio.create_task(qmp.execute("ping"))
        await qemu.reader.read(65536)
        qemu.writer.write(b"[" * (2 * 1024 * 1024))
        with pytest.raises(MachineDied):
            await asking


@pytest.mark.parametrize("said", ["an event", "an answer that the service before had asked for"])
async def test_a_qemu_that_another_service_had_to_do_with_may_say_something_of_that_first(said: str) -> None:
    late = {"event": "RESUME", "timestamp": {}} if said == "an event" else {"error": {"class": "x", "desc": "y"}}
    answering: list[asyncio.Task[None]] = []

    async def serve(theirs: socket.socket, first: object) -> None:
        reader, writer = await asyncio.open_connection(sock=theirs)
        qemu = FakeQemu(reader, writer)
        qemu.say(GREETING)
        if first is not None:
            qemu.say(first)
        await qemu.answer()
        if first is None:
            await qemu.answer("pong")
        await writer.drain()

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        answering.append(asyncio.create_task(serve(theirs, None if answering else late)))
        return ours

    async with AsyncExitStack() as stack:
        qmp = await take_over_qmp(stack, connect)
        assert await qmp.execute("ping") == "pong"
    assert len(answering) == 2


async def test_a_qemu_that_never_answers_right_is_given_up() -> None:
    ends: list[socket.socket] = []

    def connect() -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(b"nonsense\r\n")
        ends.append(theirs)
        return ours

    async with AsyncExitStack() as stack:
        with pytest.raises(MachineDied):
            await take_over_qmp(stack, connect)
    assert len(ends) == 3
    for end in ends:
        end.close()
