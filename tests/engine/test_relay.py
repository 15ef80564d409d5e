"""The relay between host and kernel: binary buffers both ways byte for byte, subshells, heartbeat, two clients."""

import asyncio
import os

import pytest

from interpreter import Session
from interpreter.kernel.connection import KernelConnection
from interpreter.kernel.framing import open_service
from kernel_guest.frames import Kind

pytestmark = pytest.mark.machine

ECHO = """
def target(comm, message):
    @comm.on_msg
    def echo(message):
        comm.send({"echo": True}, buffers=message["buffers"])
get_ipython().kernel.comm_manager.register_target("echo", target)
"""


def connection_of(session: Session) -> KernelConnection:
    return session.main.connection


async def test_comm_buffers_of_every_size_pass_both_ways_unchanged(session: Session) -> None:
    await session.execute(ECHO)
    connection = connection_of(session)
    opened = connection.codec.request("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}})
    await connection.send("shell", opened)
    buffers = [b"", b"x", os.urandom(8 * 1024 * 1024), bytes(range(256))]
    message = connection.codec.request("comm_msg", {"comm_id": "c", "data": {}})
    message.buffers.extend(buffers)
    with connection.replies(message) as inbox:
        async with asyncio.timeout(60):
            await connection.send("shell", message)
            while True:
                channel, answer = await inbox.get()
                if (channel, answer.type) == ("iopub", "comm_msg"):
                    break
    assert answer.buffers == buffers


async def test_a_subshell_answers_while_the_shell_is_busy(session: Session) -> None:
    connection = connection_of(session)
    request = connection.codec.request("create_subshell_request", {})
    subshell = (await connection.ask("control", request, timeout=30)).content["subshell_id"]
    asked, released = asyncio.Event(), asyncio.Event()

    async def hold(prompt: str, password: bool) -> str:
        asked.set()
        await released.wait()
        return ""

    busy = asyncio.create_task(session.execute("x = 1\ninput()", on_input=hold).result())
    # ipykernel keeps one "may ask for input" for all its shells: the second request must not come before the question.
    await asked.wait()
    code = connection.codec.request(
        "execute_request", {"code": "y = 2", "silent": False, "store_history": False}, subshell_id=subshell
    )
    reply = await connection.ask("shell", code, timeout=30)
    assert reply.content["status"] == "ok"
    assert not busy.done()
    released.set()
    assert (await busy).status == "ok"


async def test_the_heartbeat_comes_back(session: Session) -> None:
    async with open_service(session.vsock.connect, "kernel") as stream:
        await stream.send(Kind.MESSAGE, {"channel": "hb", "parts": [b"ping"]})
        async with asyncio.timeout(30):
            while True:
                frame = await stream.receive()
                assert frame is not None
                if frame.body["channel"] == "hb":
                    break
        assert frame.body["parts"] == [b"ping"]


async def test_five_thousand_lines_arrive_in_order(session: Session) -> None:
    result = await session.execute("for i in range(5000): print(i, flush=i % 10 == 0)")
    assert result.stdout.split() == [str(number) for number in range(5000)]


async def test_ten_megabytes_reach_a_reader_that_lags_behind(session: Session) -> None:
    count = 0
    async for output in session.execute("for i in range(100): print('x' * 100_000, flush=True)"):
        count += len(output.text) if output.type == "stream" else 0
        # The loop's other work goes first each time: the reader is always behind.
        for _ in range(50):
            await asyncio.sleep(0)
    assert count == 100 * 100_001
