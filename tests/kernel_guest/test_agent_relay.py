"""The relay passes every message between its clients and a real kernel: whole, in order, to whom it belongs."""

import asyncio
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from guest_on_host import SECONDS, Guest, Kernel, start_guest

from interpreter.errors import GuestRefused, KernelDied
from interpreter.kernel.framing import FrameStream, open_service
from interpreter.kernel.message import Codec, Message
from kernel_guest.frames import Frame, Kind
from kernel_guest.relay import Relay, channel_path

pytestmark = pytest.mark.machine

LISTEN = """
def target(comm, opening):
    @comm.on_msg
    def echo(message):
        comm.send({"sizes": [len(part) for part in message["buffers"]]}, buffers=message["buffers"])
    comm.send({"opened": True}, buffers=opening["buffers"])
get_ipython().kernel.comm_manager.register_target("echo", target)
"""
LINES = "for number in range(10_000): print(str(number).zfill(6) * 170, flush=True)"


async def test_outputs_arrive_in_the_order_in_which_they_were_made(kernel: Kernel) -> None:
    code = "import sys\nprint('a', flush=True)\nprint('b', file=sys.stderr, flush=True)\ndisplay(1)\nprint('c')\n2"
    result = await kernel.run(code)
    assert [output.type for output in result.outputs] == [
        "stream",
        "stream",
        "display_data",
        "stream",
        "execute_result",
    ]
    assert (result.status, result.stdout, result.stderr) == ("ok", "a\nc\n", "b\n")


async def test_five_thousand_lines_arrive_in_order(kernel: Kernel) -> None:
    text = await kernel.printed("for number in range(5000): print(number, flush=number % 7 == 0)")
    assert text.split() == [str(number) for number in range(5000)]


async def test_an_error_names_what_was_raised(kernel: Kernel) -> None:
    result = await kernel.run("1 / 0")
    assert result.status == "error"
    assert getattr(result.outputs[-1], "ename", None) == "ZeroDivisionError"


async def test_input_is_answered_by_the_client_that_ran_the_code(kernel: Kernel) -> None:
    asked: list[tuple[str, bool]] = []

    async def answer(prompt: str, password: bool) -> str:
        asked.append((prompt, password))
        return f"answer {len(asked)}"

    code = "import getpass\nprint(input('name? '), getpass.getpass('word? '))"
    async with asyncio.timeout(SECONDS):
        result = await kernel.execute(code, on_input=answer)
    assert result.stdout == "answer 1 answer 2\n"
    assert asked == [("name? ", False), ("word? ", True)]


async def test_an_interrupt_ends_code_that_waits_for_an_answer(kernel: Kernel) -> None:
    ended = asyncio.Event()

    async def never(prompt: str, password: bool) -> str:
        await kernel.interrupt()
        try:
            return await asyncio.Future()
        finally:
            ended.set()

    async with asyncio.timeout(SECONDS):
        result = await kernel.execute("input()", on_input=never)
    assert getattr(result.outputs[-1], "ename", None) == "KeyboardInterrupt"
    assert ended.is_set()


async def test_who_fails_to_answer_gets_that_error(kernel: Kernel) -> None:
    async def fail(prompt: str, password: bool) -> str:
        raise RuntimeError("nobody there")

    async with asyncio.timeout(SECONDS):
        with pytest.raises(RuntimeError, match="nobody there"):
            await kernel.execute("input()", on_input=fail)
        await kernel.restart()


async def test_an_interrupt_ends_the_code_that_runs_and_keeps_its_variables(kernel: Kernel) -> None:
    async with asyncio.timeout(SECONDS):
        outputs = [
            output async for output in interrupted(kernel, "kept = 5\nprint('runs', flush=True)\nwhile True: pass")
        ]
    assert getattr(outputs[-1], "ename", None) == "KeyboardInterrupt"
    assert await kernel.printed("print(kept)") == "5\n"


async def interrupted(kernel: Kernel, code: str):
    async for output in kernel.execute(code):
        if output.type == "stream":
            await kernel.interrupt()
        yield output


async def test_a_restart_gives_a_new_kernel_behind_the_same_connection(kernel: Kernel) -> None:
    before = await kernel.printed("lost = 1\nimport os\nprint(os.getpid())")
    await kernel.restart()
    result = await kernel.run("import os\nprint(os.getpid(), 'lost' in globals())")
    pid, lost = result.stdout.split()
    assert (pid != before.strip(), lost, result.execution_count) == (True, "False", 1)


async def test_who_joins_a_kernel_that_is_silent_is_told_and_who_comes_when_it_speaks_again_is_let_in() -> None:
    async with start_guest("3") as guest:
        await guest.renew()
        async with guest.kernel() as kernel:
            pid = int(await kernel.printed("import os; print(os.getpid())"))
            os.kill(pid, signal.SIGSTOP)
            try:
                told = r"did not let a client in within 3 s\. Restart the kernel"
                with pytest.raises(GuestRefused, match=told) as refused:
                    async with guest.kernel():
                        pass
            finally:
                os.kill(pid, signal.SIGCONT)
            assert refused.value.guest_code == "kernel_silent"
            async with guest.kernel() as other:
                assert await other.printed("print(1)") == "1\n"


async def test_restarts_at_once_leave_one_kernel(kernel: Kernel) -> None:
    await asyncio.gather(*(kernel.guest.call("restart") for _ in range(3)))
    kernel.connection.kernel_restarted()
    assert await kernel.printed("print('here')") == "here\n"


async def test_a_client_that_leaves_during_a_restart_does_not_hold_it_up(guest: Guest) -> None:
    for step in range(20):
        async with guest.kernel():
            restarting = asyncio.create_task(guest.call("restart"))
            await guest.event("kernel_exited")
            # At different moments: before the new kernel is there, and while it lets its clients in.
            await asyncio.sleep(step * 0.01)
        # In vain it would be for 30 s, and then it would fail.
        async with asyncio.timeout(20):
            await restarting


async def test_a_restart_tells_who_waits_that_the_kernel_died(kernel: Kernel) -> None:
    async with asyncio.timeout(SECONDS):
        with pytest.raises(KernelDied):
            async for _ in kernel.execute("print('runs', flush=True)\nwhile True: pass"):
                await kernel.restart()


async def test_a_client_that_lags_behind_keeps_its_stream_over_a_restart(guest: Guest) -> None:
    codec = codec_of(guest)
    async with asyncio.timeout(SECONDS), open_service(guest.connect, "kernel") as stream:
        await send(
            stream, codec, codec.request("execute_request", {"code": "while True: print('x' * 10_000, flush=True)"})
        )
        await next_of(stream, codec, "stream")
        # The relay has stopped for this client, and goes on in the midst of the restart.
        answered = asyncio.create_task(next_of(stream, codec, "kernel_info_reply"))
        await guest.call("restart")
        request = codec.request("kernel_info_request", {})
        await send(stream, codec, request)
        assert (await answered).parent_id == request.header.msg_id


@pytest.mark.parametrize("size", [0, 1, 8 * 1024 * 1024], ids=["0 B", "1 B", "8 MB"])
async def test_comm_buffers_pass_both_ways_byte_for_byte(kernel: Kernel, size: int) -> None:
    await kernel.printed(LISTEN)
    codec = kernel.connection.codec
    buffers = [os.urandom(size), bytes(range(256))]
    opening = codec.request("comm_open", {"comm_id": f"c{size}", "target_name": "echo", "data": {}})
    opening.buffers.extend(buffers)
    assert (await comm_answer(kernel, opening)).buffers == buffers
    message = codec.request("comm_msg", {"comm_id": f"c{size}", "data": {}})
    message.buffers.extend(reversed(buffers))
    answer = await comm_answer(kernel, message)
    assert answer.buffers == buffers[::-1]
    assert answer.content["data"]["sizes"] == [256, size]


async def comm_answer(kernel: Kernel, request: Message) -> Message:
    with kernel.connection.replies(request) as inbox:
        async with asyncio.timeout(SECONDS):
            await kernel.connection.send("shell", request)
            while True:
                channel, message = await inbox.get()
                if (channel, message.type) == ("iopub", "comm_msg"):
                    return message


async def test_a_subshell_runs_code_beside_a_busy_shell(kernel: Kernel) -> None:
    connection = kernel.connection
    create = connection.codec.request("create_subshell_request", {})
    subshell = (await connection.ask("control", create, timeout=SECONDS)).content["subshell_id"]
    busy, release = asyncio.Event(), asyncio.Event()

    async def hold(prompt: str, password: bool) -> str:
        busy.set()
        await release.wait()
        return "end"

    async with asyncio.timeout(SECONDS):
        held = asyncio.create_task(kernel.execute("print(input())", on_input=hold).result())
        await busy.wait()
        request = connection.codec.request("execute_request", {"code": "beside = 1"}, subshell_id=subshell)
        reply = await connection.ask("shell", request, timeout=SECONDS)
        assert (reply.content["status"], held.done()) == ("ok", False)
        release.set()
        assert (await held).stdout == "end\n"
    delete = connection.codec.request("delete_subshell_request", {"subshell_id": subshell})
    assert (await connection.ask("control", delete, timeout=SECONDS)).content["status"] == "ok"


async def test_two_clients_at_once_each_get_their_own_outputs(guest: Guest, kernel: Kernel) -> None:
    async with guest.kernel() as other, asyncio.TaskGroup() as group:
        first = [group.create_task(kernel.printed(f"print('first', {number})")) for number in range(10)]
        second = [group.create_task(other.printed(f"print('second', {number})")) for number in range(10)]
    assert [task.result() for task in first] == [f"first {number}\n" for number in range(10)]
    assert [task.result() for task in second] == [f"second {number}\n" for number in range(10)]


async def test_a_reader_that_lags_behind_ten_megabytes_loses_nothing(kernel: Kernel) -> None:
    text: list[str] = []
    async with asyncio.timeout(SECONDS):
        async for output in kernel.execute(LINES):
            # The reader's way to the agent and back, each time: far slower than the kernel prints.
            await kernel.guest.call("ping")
            assert output.type == "stream"
            text.append(output.text)
    assert "".join(text).split() == [str(number).zfill(6) * 170 for number in range(10_000)]


async def test_a_client_that_never_reads_and_leaves_does_not_stop_the_others(guest: Guest, kernel: Kernel) -> None:
    codec = codec_of(guest)
    async with open_service(guest.connect, "kernel") as stream:
        request = codec.request("execute_request", {"code": "for _ in range(100): print('x' * 100_000, flush=True)"})
        await send(stream, codec, request)
        await next_of(stream, codec, "stream")
    assert await kernel.printed("print('here')") == "here\n"


async def test_kernel_info_names_the_protocol(kernel: Kernel) -> None:
    for channel in ("shell", "control"):
        request = kernel.connection.codec.request("kernel_info_request", {})
        reply = await kernel.connection.ask(channel, request, timeout=SECONDS)
        assert reply.content["status"] == "ok"
        assert reply.content["protocol_version"].startswith("5.")


async def test_the_heartbeat_comes_back(guest: Guest) -> None:
    async with asyncio.timeout(SECONDS), open_service(guest.connect, "kernel") as stream:
        await stream.send(Kind.MESSAGE, {"channel": "hb", "parts": [b"\0beat"]})
        while (frame := await stream.receive()) is not None:
            if frame.body["channel"] == "hb":
                break
        assert frame == Frame(Kind.MESSAGE, {"channel": "hb", "parts": [b"\0beat"]})


@pytest.mark.parametrize(
    "body",
    [
        {"channel": "iopub", "parts": [b"x"]},
        {"channel": "nonsense", "parts": [b"x"]},
        {"channel": ["shell"], "parts": [b"x"]},
        {"channel": "shell", "parts": b"x"},
        {"channel": "shell", "parts": []},
        {"channel": "shell", "parts": [1, "x"]},
        {},
    ],
    ids=str,
)
async def test_what_is_no_message_for_the_kernel_ends_its_own_stream_alone(
    guest: Guest, kernel: Kernel, body: dict[str, object]
) -> None:
    async with asyncio.timeout(SECONDS), open_service(guest.connect, "kernel") as stream:
        await stream.send(Kind.MESSAGE, body)
        while await stream.receive() is not None:
            continue
    assert await kernel.printed("print('here')") == "here\n"


def codec_of(guest: Guest) -> Codec:
    return Codec(guest.renewal.key, guest.renewal.session)


async def send(stream: FrameStream, codec: Codec, message: Message, channel: str = "shell") -> None:
    await stream.send(Kind.MESSAGE, {"channel": channel, "parts": codec.serialise(message)})


def parse(codec: Codec, frame: Frame | None) -> Message:
    assert frame is not None
    return codec.parse(frame.body["parts"])


async def next_of(stream: FrameStream, codec: Codec, kind: str) -> Message:
    while (message := parse(codec, await stream.receive())).type != kind:
        continue
    return message


@contextmanager
def publisher(folder: Path) -> Generator[tuple[zmq.Context[Any], zmq.Socket[Any]]]:
    """The iopub socket of something that is no kernel: it welcomes nobody by itself."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.bind(f"ipc://{channel_path(folder, 'iopub')}")
        yield context, socket


async def subscription(socket: zmq.Socket[Any]) -> None:
    """Wait for one."""
    async with asyncio.timeout(SECONDS):
        while not socket.poll(0) or socket.recv() != b"\1":  # noqa: ASYNC110  (ZeroMQ's event is none of asyncio's)
            await asyncio.sleep(0.01)


async def test_any_message_proves_that_the_subscription_counts(tmp_path: Path) -> None:
    with publisher(tmp_path) as (context, socket):
        relay = Relay(context, tmp_path)
        relay.connect()
        await subscription(socket)
        socket.send_multipart([b"stream", b"anything"])
        async with asyncio.timeout(SECONDS):
            await relay.welcomed()
        relay.disconnect()


async def test_a_welcome_that_was_lost_is_asked_for_again(tmp_path: Path) -> None:
    with publisher(tmp_path) as (context, socket):
        relay = Relay(context, tmp_path)
        relay.connect()
        waiting = asyncio.create_task(relay.welcomed())
        await subscription(socket)
        await subscription(socket)
        socket.send(b"welcome")
        async with asyncio.timeout(SECONDS):
            await waiting
        relay.disconnect()


LOSES_ONE_WELCOME = """
thread = get_ipython().kernel.iopub_thread
def lose(subscription):
    del thread._send_welcome_message
thread._send_welcome_message = lose
"""


async def test_a_kernel_that_loses_a_welcome_lets_its_client_in(guest: Guest, kernel: Kernel) -> None:
    await kernel.run(LOSES_ONE_WELCOME)
    async with asyncio.timeout(SECONDS), guest.kernel() as other:
        assert await other.printed("print('_send_welcome_message' in vars(thread))") == "False\n"
