"""The agent outlives what its processes do: kernels that die, orphans, and hosts that send nonsense."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from guest_on_host import SECONDS, Guest

from interpreter.errors import GuestRefused, KernelDied, VsockError
from interpreter.kernel.control import AgentEvent
from interpreter.kernel.framing import FrameStream, open_service
from kernel_guest.frames import AGENT_PORT, Frame, Kind, encode

pytestmark = pytest.mark.machine


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_kernel_that_kills_itself_is_told_of_with_its_status(guest: Guest, number: signal.Signals) -> None:
    async with guest.kernel() as kernel:
        pid = int(await kernel.printed("import os\nprint(os.getpid())"))
        died = asyncio.create_task(kernel.execute(f"os.kill(os.getpid(), {number:d})").result())
        assert (await exit_of(guest, pid))["status"] == -number
        # As a session does with this event: who waits for the kernel is told.
        kernel.connection.kernel_died(KernelDied("the kernel died"))
        async with asyncio.timeout(SECONDS):
            with pytest.raises(KernelDied):
                await died
        await kernel.restart()
        assert await kernel.printed("print(1)") == "1\n"


async def test_a_kernel_that_exits_is_told_of_with_its_status(guest: Guest) -> None:
    async with guest.kernel() as kernel:
        pid = int(await kernel.printed("import os\nprint(os.getpid())"))
        died = asyncio.create_task(kernel.execute("os._exit(7)").result())
        assert (await exit_of(guest, pid))["status"] == 7
        died.cancel()
        await asyncio.wait({died})
    await guest.call("restart")


async def test_without_a_kernel_streams_and_interrupts_are_refused_until_a_restart(guest: Guest) -> None:
    async with guest.kernel() as kernel:
        pid = int(await kernel.printed("import os\nprint(os.getpid())"))
        await kernel.connection.send(
            "shell", kernel.connection.codec.request("execute_request", {"code": "os._exit(0)"})
        )
        await exit_of(guest, pid)
    with pytest.raises(GuestRefused) as stream:
        async with open_service(guest.connect, "kernel"):
            pass
    with pytest.raises(GuestRefused) as interrupt:
        await guest.call("interrupt")
    assert {stream.value.guest_code, interrupt.value.guest_code} == {"no_kernel"}
    # One who can wait gets a stream that leads to the next kernel.
    async with guest.kernel() as kernel:
        assert kernel.connection.is_dead
        with pytest.raises(KernelDied):
            await kernel.execute("1")
        await guest.call("restart")
        kernel.connection.kernel_restarted()
        assert await kernel.printed("print(2)") == "2\n"


async def test_an_interrupt_reaches_the_programs_that_the_code_has_started(guest: Guest) -> None:
    async with guest.kernel() as kernel, asyncio.timeout(SECONDS):
        # The program tells of it itself: an interrupted wait() may lose its status. It holds the signal back until it
        # waits for it: a shell's trap that came between two commands would run after the second one.
        told = guest.home / "told"
        script = "import pathlib, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); "
        script += "print('runs', flush=True); signal.sigwait([signal.SIGINT]); "
        script += f"pathlib.Path({str(told)!r}).write_text('interrupted')"
        code = f"import subprocess, sys\nprogram = subprocess.Popen([sys.executable, '-c', {script!r}], "
        code += "stdout=subprocess.PIPE)\n"
        code += "program.stdout.readline()\nprint(program.pid, flush=True)\nprogram.wait()"
        async for output in kernel.execute(code):
            if output.type == "stream":
                await kernel.interrupt()
        await kernel.printed("import os\nif os.path.exists(f'/proc/{program.pid}'): program.wait()")
        assert told.read_text() == "interrupted"


async def test_contexts_have_kernels_of_their_own(guest: Guest) -> None:
    await guest.call("open_context", context="second")
    async with guest.kernel() as main, guest.kernel("second") as second:
        await main.printed("x = 1")
        assert await second.printed("print('x' in globals())") == "False\n"
        # One is busy, the other answers; each is interrupted alone.
        async for output in second.execute("print('runs', flush=True)\nwhile True: pass"):
            if output.type == "stream":
                assert await main.printed("print(x)") == "1\n"
                await guest.call("interrupt", context="second")
        await guest.call("restart", context="second")
        assert await main.printed("print(x)") == "1\n"
    await guest.call("close_context", context="second")
    with pytest.raises(GuestRefused) as refusal:
        async with guest.kernel("second"):
            pass
    assert refusal.value.guest_code == "not_found"


@pytest.mark.parametrize("name", ["main", "", "a/b", "..", "x" * 65])
async def test_a_context_with_a_wrong_name_is_refused(guest: Guest, name: str) -> None:
    with pytest.raises(GuestRefused) as refusal:
        await guest.call("open_context", context=name)
    assert refusal.value.guest_code == "bad_request"


async def test_the_main_context_cannot_be_closed(guest: Guest) -> None:
    with pytest.raises(GuestRefused):
        await guest.call("close_context", context="main")


async def test_a_restart_ends_the_programs_that_the_code_has_started(guest: Guest) -> None:
    async with guest.kernel() as kernel:
        pid = await kernel.printed("import subprocess\nprint(subprocess.Popen(['sleep', 'infinity']).pid)")
        await kernel.restart()
        await gone(guest, int(pid))


async def test_orphans_are_taken_over_and_reaped(guest: Guest) -> None:
    async with guest.kernel() as kernel:
        code = (
            "import subprocess\n"
            "shell = subprocess.run(['sh', '-c', 'sleep infinity > /dev/null & echo $!'], stdout=subprocess.PIPE)\n"
            "print(int(shell.stdout))"
        )
        orphan = int(await kernel.printed(code))
        parent = int(await kernel.printed("import os\nprint(os.getppid())"))
        # The agent is the kernel's parent too: kernels are forked twice.
        assert parent_of(orphan) == parent
        await kernel.printed(f"os.kill({orphan}, 15)")
        await gone(guest, orphan)


async def test_an_unknown_operation_is_refused(guest: Guest) -> None:
    with pytest.raises(GuestRefused, match="nonsense") as refusal:
        await guest.call("nonsense")
    assert refusal.value.guest_code == "bad_request"


async def test_an_operation_without_its_arguments_is_refused(guest: Guest) -> None:
    for arguments in ({}, {"clock_ns": "now"}, {"clock_ns": None}):
        with pytest.raises(GuestRefused) as refusal:
            await guest.call("clock", **arguments)
        assert refusal.value.guest_code == "bad_request"


async def test_calls_that_are_under_way_together_each_get_their_own_answer(guest: Guest) -> None:
    answers = await asyncio.gather(*(guest.call("clock", clock_ns=number) for number in range(200)))
    assert [answer["clock_ns"] for answer in answers] == list(range(200))


@pytest.mark.parametrize(
    ("service", "arguments"),
    [
        ("nonsense", {}),
        ("splice", {"channel": "nonsense"}),
        ("put", {"path": "x"}),
        ("put", {"path": "x", "size": -1, "mode": 0o644}),
        ("put", {"path": 1, "size": 1, "mode": 0o644}),
        ("get", {}),
    ],
)
async def test_an_unknown_service_or_wrong_arguments_are_refused(
    guest: Guest, service: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(GuestRefused) as refusal:
        async with open_service(guest.connect, service, **arguments):
            pass
    assert refusal.value.guest_code == "bad_request"


@pytest.mark.parametrize(
    "opening", [b"\xff\xff\xff\xff", b"\0\0\0\x04none", b"\0\0\0\0", b"\0\0\0\x05\xc1"], ids=lambda data: data.hex()
)
async def test_what_is_no_frame_ends_its_own_stream_alone(guest: Guest, opening: bytes) -> None:
    async with guest.kernel() as kernel:
        async with raw_stream(guest) as stream:
            stream.writer.write(opening)
            stream.writer.write_eof()
            assert await stream.receive() is None
        assert await kernel.printed("print('here')") == "here\n"
    await guest.call("ping")


async def test_no_frame_after_the_opening_ends_its_own_stream_alone(guest: Guest) -> None:
    async with guest.kernel() as kernel:
        async with asyncio.timeout(SECONDS), open_service(guest.connect, "kernel") as stream:
            stream.writer.write(b"\0\0\0\x04none")
            while await stream.receive() is not None:
                continue
        assert await kernel.printed("print('here')") == "here\n"


async def test_a_stream_that_does_not_begin_with_open_is_refused(guest: Guest) -> None:
    async with raw_stream(guest) as stream:
        stream.writer.write(encode(Frame(Kind.CALL, {"op": "ping"})))
        with pytest.raises(GuestRefused) as refusal:
            await stream.answer()
    assert refusal.value.guest_code == "bad_request"


async def test_more_streams_than_the_agent_takes_are_closed_and_the_rest_go_on(guest: Guest) -> None:
    async with contextlib.AsyncExitStack() as stack:
        kernel = await stack.enter_async_context(guest.kernel())
        # None of them says what it is for, so each stays as it is.
        silent = [await stack.enter_async_context(raw_stream(guest)) for _ in range(300)]
        with pytest.raises((VsockError, ConnectionError)):
            await silent[-1].answer()
        assert await kernel.printed("print('here')") == "here\n"
    async with guest.kernel() as kernel:
        assert await kernel.printed("print('again')") == "again\n"


async def test_a_spliced_channel_is_the_kernels_own_socket(guest: Guest) -> None:
    async with asyncio.timeout(SECONDS), open_service(guest.connect, "splice", channel="shell") as stream:
        # ZMTP's greeting: the signature that every ZeroMQ socket sends first.
        assert (await stream.reader.readexactly(10))[0] == 0xFF


@contextlib.asynccontextmanager
async def raw_stream(guest: Guest) -> AsyncGenerator[FrameStream]:
    reader, writer = await guest.connect(AGENT_PORT)
    try:
        async with asyncio.timeout(SECONDS):
            yield FrameStream(reader, writer)
    finally:
        writer.close()


async def exit_of(guest: Guest, pid: int) -> AgentEvent:
    """What the agent tells of that kernel's end; what it told of others before is passed over."""
    while (event := await guest.event("kernel_exited"))["pid"] != pid:
        continue
    return event


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def gone(guest: Guest, pid: int) -> None:
    """Wait until a process is not even a zombie; the calls give the agent time to take its status."""
    async with asyncio.timeout(SECONDS):
        while Path(f"/proc/{pid}").exists():
            await guest.call("ping")


async def test_kernels_started_at_the_same_time_are_all_there(guest: Guest) -> None:
    names = [f"at-once-{number}" for number in range(4)]
    await asyncio.gather(*(guest.call("open_context", context=name) for name in names))
    await asyncio.gather(*(guest.call("restart", context=name) for name in [*names, "main"]))
    for name in [*names, "main"]:
        async with guest.kernel(name) as kernel:
            assert await kernel.printed(f"print({name!r})") == f"{name}\n"
    for name in names:
        await guest.call("close_context", context=name)
