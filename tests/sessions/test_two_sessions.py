"""Two sessions in one service: what one guest sends, as no guest of ours would, does not reach the other."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from test_execution_memory import MIB, SECONDS, Fixture, executing

from interpreter.errors import GuestMisbehaved, InterpreterError
from interpreter.kernel.control import AgentControl, AgentEvent, serve_control
from interpreter.sessions.executions import ExecutionRequest
from kernel_guest.frames import AGENT_VERSION, MAX_MESSAGE, Frame, FrameDecoder, Kind, encode

HELLO = encode(Frame(Kind.EVENT, {"event": "hello", "version": AGENT_VERSION}))
EVENTS = 40_000
READ_AHEAD = 4 * MIB
"""What a stream takes in before anybody asks for it, and what lies in the sockets."""


class Unfinished:
    """A frame that a guest announces, begins, and never ends."""

    def __init__(self, fixture: Fixture, size: int) -> None:
        self._writer = fixture.relayed.stream.writer
        self._size = size
        self._written = 0

    @property
    def taken(self) -> int:
        """Bytes that the service took."""
        return self._written - self._writer.transport.get_write_buffer_size()

    async def send(self) -> None:
        self._writer.write(self._size.to_bytes(4, "big"))
        while self._written < self._size - MIB:
            self._writer.write(bytes(MIB))
            self._written += MIB
            await self._writer.drain()


@pytest.mark.parametrize(
    ("size", "taken", "counted"),
    [(256 * MIB, READ_AHEAD, 0), (MAX_MESSAGE, MAX_MESSAGE, MAX_MESSAGE)],
    ids=["longer than any may be", "as long as one may be"],
)
async def test_a_frame_without_an_end_is_its_own_sessions(tmp_path: Path, size: int, taken: int, counted: int) -> None:
    for name in ("noisy", "quiet"):
        (tmp_path / name).mkdir()
    async with executing(tmp_path / "noisy") as noisy, executing(tmp_path / "quiet") as quiet:
        noisy.relayed.may_run.clear()
        running = await noisy.executions.start(ExecutionRequest("1"))
        frame = Unfinished(noisy, size)
        sending = asyncio.create_task(frame.send())
        for _ in range(30):
            outcome = (await quiet.run("1000")).outcome
            assert outcome is not None
            assert outcome.status == "ok"
        assert quiet.memory.held < MIB
        if counted:
            async with asyncio.timeout(SECONDS):
                await sending
        else:
            async with asyncio.timeout(SECONDS):
                await running.done.wait()
            assert running.outcome is not None
            assert running.outcome.error is not None
            assert running.outcome.error["code"] == "guest_misbehaved"
        assert frame.taken <= taken
        assert noisy.memory.under_way.held == counted
        sending.cancel()
        await noisy.executions.close(InterpreterError("it is over"))


class Guest:
    """An agent that answers every call, and says what the test wants."""

    def __init__(self, control: AgentControl, writer: asyncio.StreamWriter) -> None:
        self.control = control
        self.writer = writer
        self.told: list[AgentEvent] = []
        self.ended: list[InterpreterError] = []


@contextlib.asynccontextmanager
async def guest() -> AsyncGenerator[Guest]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)

    async def answer() -> None:
        decoder = FrameDecoder()
        while data := await reader.read(65_536):
            for frame in decoder.feed(data):
                writer.write(encode(Frame(Kind.OK, {"id": frame.body["id"]})))

    answering = asyncio.create_task(answer())
    writer.write(HELLO)
    told: list[AgentEvent] = []
    ended: list[InterpreterError] = []
    async with serve_control(*await asyncio.open_connection(sock=ours), told.append, ended.append) as control:
        it = Guest(control, writer)
        it.told, it.ended = told, ended
        yield it
    answering.cancel()
    writer.close()


async def test_events_without_end_are_their_own_sessions() -> None:
    async with guest() as noisy, guest() as quiet:
        noisy.writer.write(encode(Frame(Kind.EVENT, {"event": "kernel_exited"})) * EVENTS)
        for _ in range(50):
            await quiet.control.call("ping", timeout=SECONDS)
        async with asyncio.timeout(SECONDS):
            with pytest.raises(GuestMisbehaved):
                while True:
                    await noisy.control.call("ping", timeout=SECONDS)
        assert [type(error) for error in noisy.ended] == [GuestMisbehaved]
        assert len(noisy.told) < EVENTS / 100
        await quiet.control.call("ping", timeout=SECONDS)
        assert (quiet.told, quiet.ended) == ([], [])
