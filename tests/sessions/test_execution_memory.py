"""Executions of a session: code is let go of when it has run, outputs are kept once, both within the session's room."""

import asyncio
import json
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from interpreter import Settings
from interpreter.clock import SystemClock
from interpreter.engine.kernel import Kernel
from interpreter.errors import Busy, KernelDied
from interpreter.kernel.channels import MAIN, KernelChannels
from interpreter.kernel.connection import KernelConnection
from interpreter.kernel.execution import ExecutionOptions
from interpreter.kernel.framing import FrameStream
from interpreter.kernel.memory import SessionMemory
from interpreter.kernel.message import Codec, Message
from interpreter.sessions.executions import ExecutionRequest, Executions, RunningExecution
from interpreter.store.database import open_database
from interpreter.store.store import Store
from kernel_guest.frames import MAX_MESSAGE, Frame, Kind, encode

SECONDS = 60.0
MIB = 1024 * 1024
CODEC = Codec(b"key", "session")
OUTPUT_LIMIT = 2_000_000


class Relayed:
    """The far end of a kernel's stream: a kernel that prints as many characters as its code says, when it may."""

    def __init__(self, stream: FrameStream) -> None:
        self.stream = stream
        self.last: Message | None = None
        self.may_run = asyncio.Event()
        self.may_run.set()

    async def run(self) -> None:
        while (frame := await self.stream.receive()) is not None:
            request = CODEC.parse(frame.body["parts"])
            await self.may_run.wait()
            count = int(request.content["code"].split("#")[0])
            await self._tell(request, "iopub", "stream", {"name": "stdout", "text": "x" * count})
            await self._tell(request, "shell", "execute_reply", {"status": "ok", "execution_count": 1})
            await self._tell(request, "iopub", "status", {"execution_state": "idle"})
            self.last = request

    async def print_late(self, text: str) -> None:
        """Something that the last code has started prints, after that has ended."""
        assert self.last is not None
        await self._tell(self.last, "iopub", "stream", {"name": "stdout", "text": text})

    async def _tell(self, request: Message, channel: str, kind: str, content: dict[str, Any]) -> None:
        parts = CODEC.serialise(CODEC.request(kind, content))
        parts[2 + 1] = json.dumps({"msg_id": request.header.msg_id, "session": request.header.session}).encode()
        self.stream.writer.write(encode(Frame(Kind.MESSAGE, {"channel": channel, "parts": CODEC.signed(parts[2:])})))
        await self.stream.writer.drain()


class Fixture:
    """Executions of a session, and the kernel that they run in."""

    def __init__(self, executions: Executions, relayed: Relayed, memory: SessionMemory) -> None:
        self.executions = executions
        self.relayed = relayed
        self.memory = memory

    async def run(self, code: str, **more: Any) -> RunningExecution:
        running = await self.executions.start(ExecutionRequest(code, **more))
        async with asyncio.timeout(SECONDS):
            await running.done.wait()
        # Its task is over when its room is given back.
        await asyncio.sleep(0)
        return running


@asynccontextmanager
async def executing(folder: Path) -> AsyncGenerator[Fixture]:
    """A session's executions, with the kernel's end of its stream in the test's hands."""
    ours, theirs = socket.socketpair()
    near = FrameStream(*await asyncio.open_connection(sock=ours, limit=MIB), limit=MAX_MESSAGE)
    far = FrameStream(*await asyncio.open_connection(sock=theirs, limit=MIB), limit=MAX_MESSAGE)
    connection = KernelConnection(KernelChannels(near), CODEC)
    memory = SessionMemory(24 * MIB)
    connection.share(memory)
    kernel = Kernel("session", MAIN, cast("Any", None), connection)
    session = SimpleNamespace(id="session", kernels={MAIN: kernel}, memory=memory)
    relayed = Relayed(far)
    settings = Settings(home=folder, output_limit=OUTPUT_LIMIT)
    tasks = [asyncio.create_task(work) for work in (connection.receive(), relayed.run())]
    async with open_database(folder / "service.sqlite") as database:
        executions = Executions(cast("Any", session), Store(database), settings, SystemClock())
        yield Fixture(executions, relayed, memory)
    for task in tasks:
        task.cancel()
    for stream in (near, far):
        stream.writer.close()


@pytest.fixture
async def fixture(tmp_path: Path) -> AsyncGenerator[Fixture]:
    async with executing(tmp_path) as fixture:
        yield fixture


async def test_a_result_is_what_was_printed(fixture: Fixture) -> None:
    running = await fixture.run("3")
    answer = json.loads(b"".join(running.answer()))
    assert answer.pop("duration_seconds") >= 0
    assert answer == {
        "execution_id": running.id,
        "context_id": MAIN,
        "status": "ok",
        "execution_count": 1,
        "outputs": [{"type": "stream", "name": "stdout", "text": "xxx"}],
        "error": None,
        "kernel_restarted": False,
        "truncated": False,
    }


async def test_code_that_has_run_is_not_held_any_more(fixture: Fixture) -> None:
    for _ in range(30):
        # One rare character: each takes four bytes.
        await fixture.run("1#\U0001f600" + "x" * 1_000_000)
    assert fixture.memory.held < 100_000


async def test_code_for_a_kernel_that_is_dead_is_not_held(fixture: Fixture) -> None:
    fixture.executions.kernel(MAIN).connection.kernel_died(KernelDied("it ended"))
    code = ["1#" + "x" * 1_000_000]
    references = sys.getrefcount(code[0])
    for _ in range(5):
        running = await fixture.run(code[0])
        assert running.outcome is not None
        assert running.outcome.status == "kernel_died"
        assert running.task is not None
        await asyncio.wait({running.task})
    # All five are kept, for whoever asks how they ended.
    left = sys.getrefcount(code[0])
    assert left == references


async def test_code_that_waits_is_counted_and_what_does_not_fit_is_refused(fixture: Fixture) -> None:
    fixture.relayed.may_run.clear()
    waiting = [await fixture.executions.start(ExecutionRequest("1#" + "x" * 4 * MIB)) for _ in range(3)]
    assert fixture.memory.kept.held > 12 * MIB
    with pytest.raises(Busy, match="memory"):
        await fixture.executions.start(ExecutionRequest("1#" + "x" * 5 * MIB))
    fixture.relayed.may_run.set()
    async with asyncio.timeout(SECONDS):
        for one in waiting:
            await one.done.wait()
    assert (await fixture.run("1#" + "x" * 5 * MIB)).outcome is not None


async def test_outputs_of_many_executions_are_kept_as_far_as_there_is_room(fixture: Fixture) -> None:
    ran = [await fixture.run("1900000") for _ in range(20)]
    assert fixture.memory.kept.held <= fixture.memory.kept.limit
    kept = [fixture.executions.find(one.id) is not None for one in ran]
    assert kept == sorted(kept)
    assert 6 <= sum(kept) <= 9


async def test_what_nobody_can_ask_for_later_is_not_kept(fixture: Fixture) -> None:
    running = await fixture.run("100000", keep=False)
    assert fixture.executions.find(running.id) is None
    assert fixture.memory.kept.held == 0


async def test_past_its_limit_output_is_cut_and_its_beginning_kept(fixture: Fixture) -> None:
    running = await fixture.run("5000000")
    answer = json.loads(b"".join(running.answer()))
    stream, truncated = answer["outputs"]
    assert OUTPUT_LIMIT * 0.9 < len(stream["text"]) <= OUTPUT_LIMIT
    assert (truncated, answer["truncated"]) == ({"type": "truncated", "limit_bytes": OUTPUT_LIMIT}, True)


def printed(running: RunningExecution) -> str:
    outputs = json.loads(b"".join(running.answer()))["outputs"]
    return "".join(output["text"] for output in outputs)


async def test_what_is_printed_between_executions_comes_with_the_next_one_that_shows_outputs(fixture: Fixture) -> None:
    await fixture.run("1")
    for text in ("late ", "later "):
        await fixture.relayed.print_late(text)
    # Of a notebook's cells, and of silent code, nothing else is shown.
    assert printed(await fixture.run("2", keep=False)) == "xx"
    assert printed(await fixture.run("2", options=ExecutionOptions(silent=True))) == "xx"
    assert printed(await fixture.run("3")) == "late later xxx"
    assert printed(await fixture.run("3")) == "xxx"


async def test_what_is_printed_between_executions_is_bounded_and_counted(fixture: Fixture) -> None:
    await fixture.run("1")
    held = fixture.memory.kept.held
    for _ in range(30):
        await fixture.relayed.print_late("y" * 100_000)
    # By its end all of that is here.
    await fixture.run("1", keep=False)
    running = await fixture.run("3")
    text = printed(running)
    assert 900_000 < text.count("y") < 1_000_000
    assert text.endswith("[Output of earlier code past 1000000 bytes was left out.]\nxxx")
    await fixture.relayed.print_late("y" * 100_000)
    await fixture.run("1", keep=False)
    assert fixture.memory.kept.held > held + 1_000_000
    await fixture.executions.close(Busy("it ends", retry_after=1))
    assert fixture.memory.kept.held < held + 1_100_000
