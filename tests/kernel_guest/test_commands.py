"""Commands say what they print as they print it, take input and signals, and leave nothing behind."""

import asyncio
import contextlib
import os
import signal
import socket
from collections import Counter
from pathlib import Path

import pytest
from guest_on_host import SECONDS, Guest

from interpreter.errors import BadPath, CommandNotStarted, GuestMisbehaved, GuestRefused, MachineDied
from interpreter.kernel.command import MAX_COMMAND, Command, start_command
from interpreter.kernel.framing import FrameStream, open_service
from kernel_guest.frames import STDIN_WINDOW, Frame, Kind, encode
from kernel_guest.processes import Reaper

pytestmark = [pytest.mark.machine, pytest.mark.timeout(120)]


async def everything(command: Command) -> dict[str, bytes]:
    """All that a command prints from now on."""
    printed = {"stdout": b"", "stderr": b""}
    async with asyncio.timeout(SECONDS):
        async for stream, data in command:
            printed[stream] += data
    return printed


async def run(guest: Guest, line: str | list[str], **options: object) -> tuple[int | None, bytes, bytes]:
    async with start_command(guest.connect, line, **options) as command:  # pyright: ignore[reportArgumentType]
        printed = await everything(command)
        return command.status, printed["stdout"], printed["stderr"]


async def gone(pid: int) -> None:
    """Wait until there is no such process."""
    async with asyncio.timeout(SECONDS):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110  (no event tells it)
            await asyncio.sleep(0.01)


async def test_output_error_and_status_come_back(guest: Guest) -> None:
    assert await run(guest, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


async def test_output_comes_while_the_command_runs(guest: Guest) -> None:
    async with asyncio.timeout(SECONDS), start_command(guest.connect, "echo first; read x", stdin=True) as command:
        assert await anext(aiter(command)) == ("stdout", b"first\n")
        assert command.status is None
        await command.close_stdin()
        await everything(command)
        assert command.status == 1


async def test_text_goes_through_the_shell_and_a_list_does_not(guest: Guest) -> None:
    assert (await run(guest, "echo $((1 + 1)) | tr 2 3"))[1] == b"3\n"
    nasty = ["$HOME", "a b", "new\nline", "quo'te\"", "ü", ""]
    assert (await run(guest, ["printf", r"%s\0", *nasty]))[1] == "".join(f"{text}\0" for text in nasty).encode()


async def test_it_runs_at_home_with_its_environment(guest: Guest) -> None:
    status, printed, _ = await run(guest, 'pwd; echo "$HOME"; echo "$MINE"', env={"MINE": "ü = x"})
    assert (status, printed.decode().splitlines()) == (0, [str(guest.home), str(guest.home), "ü = x"])
    (guest.home / "work here").mkdir()
    assert (await run(guest, "pwd", cwd="work here"))[1].decode().strip() == str(guest.home / "work here")


async def test_without_stdin_its_input_is_empty(guest: Guest) -> None:
    assert await run(guest, "cat") == (0, b"", b"")


async def test_cat_gives_back_more_than_any_pipe_holds(guest: Guest) -> None:
    content = os.urandom(3 * 1024 * 1024 + 5)
    async with start_command(guest.connect, ["cat"], stdin=True) as command:

        async def feed() -> None:
            await command.write(content)
            await command.close_stdin()

        feeding = asyncio.create_task(feed())
        assert (await everything(command))["stdout"] == content
        await feeding
        assert command.status == 0


async def test_input_that_nobody_reads_holds_neither_signals_nor_the_end_up(guest: Guest) -> None:
    async with start_command(guest.connect, "exec sleep 1000", stdin=True) as command:
        writing = asyncio.create_task(command.write(bytes(4 * STDIN_WINDOW)))
        await asyncio.sleep(0.1)
        assert not writing.done()
        await command.signal(signal.SIGTERM)
        assert (await everything(command), command.status) == ({"stdout": b"", "stderr": b""}, -signal.SIGTERM)
        await asyncio.wait_for(writing, SECONDS)
    async with start_command(guest.connect, "exec sleep 1000", stdin=True) as command:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(command.write(bytes(4 * STDIN_WINDOW)), 0.1)
    await gone(command.pid)


async def test_input_to_a_command_that_has_closed_it_is_dropped(guest: Guest) -> None:
    async with start_command(guest.connect, "exec <&-; echo closed; sleep 0.2", stdin=True) as command:
        await asyncio.wait_for(command.write(bytes(4 * STDIN_WINDOW)), SECONDS)
        assert (await everything(command))["stdout"] == b"closed\n"
        await command.write(b"after the end")
        assert command.status == 0


async def test_input_is_not_given_to_a_command_that_was_to_have_none(guest: Guest) -> None:
    async with start_command(guest.connect, "sleep 1000") as command:
        with pytest.raises(ValueError, match="without stdin"):
            await command.write(b"x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_a_signal_reaches_the_command_and_is_its_status(guest: Guest, number: int) -> None:
    async with start_command(guest.connect, ["sleep", "1000"]) as command:
        await command.signal(number)
        await everything(command)
        assert command.status == -number
        with pytest.raises(ValueError, match="no signal"):
            await command.signal(65)


async def test_a_signal_reaches_what_the_shell_has_started(guest: Guest) -> None:
    line = "trap 'echo shell; exit 3' INT; (trap 'echo child; exit' INT; echo ready; while :; do sleep 0.01; done)"
    async with start_command(guest.connect, line) as command:
        assert await anext(aiter(command)) == ("stdout", b"ready\n")
        await command.signal(signal.SIGINT)
        assert sorted((await everything(command))["stdout"].split()) == [b"child", b"shell"]
        assert command.status == 3


async def test_fifty_megabytes_reach_a_slow_reader_whole_and_do_not_fill_the_agent(guest: Guest) -> None:
    size = 50_000_000
    async with start_command(guest.connect, f"head -c {size} /dev/zero; echo end >&2") as command:
        # Nothing is read: the command has to wait.
        await asyncio.sleep(0.5)
        agent = Path(f"/proc/{parent_of(command.pid)}/status").read_text()
        assert int(agent.split("VmRSS:")[1].split()[0]) < 200_000
        received: Counter[str] = Counter()
        async with asyncio.timeout(SECONDS):
            async for stream, data in command:
                received[stream] += len(data)
                if received.total() < 2_000_000:
                    await asyncio.sleep(0.01)
        assert (received, command.status) == ({"stdout": size, "stderr": 4}, 0)


async def test_the_agent_answers_others_while_a_command_prints_without_end(guest: Guest) -> None:
    async with start_command(guest.connect, ["yes"]) as command:
        reading = asyncio.create_task(everything(command))
        for _ in range(20):
            await asyncio.wait_for(guest.call("ping"), 5)
        reading.cancel()
    await gone(command.pid)


async def test_a_background_child_does_not_hold_the_answer_and_ends_with_it(guest: Guest) -> None:
    async with start_command(guest.connect, "sleep 1000 & echo $!") as command:
        async with asyncio.timeout(5):
            child = int((await everything(command))["stdout"])
        assert command.status == 0
        await gone(child)


@pytest.mark.parametrize("line", ["sleep 1000 > log 2>&1 &", "nohup sleep 1000 > log 2>&1 & echo started"])
async def test_that_something_was_left_running_is_told(guest: Guest, line: str) -> None:
    status, _, told = await run(guest, line)
    assert status == 0
    assert b"ended with it" in told


@pytest.mark.parametrize("line", ["true", "yes | head -1", "sleep 0.1 & wait", "cat < /dev/null > >(cat)"])
async def test_what_leaves_nothing_running_is_told_nothing(guest: Guest, line: str) -> None:
    assert (await run(guest, line))[2] == b""


async def test_a_background_child_that_goes_on_printing_does_not_either(guest: Guest) -> None:
    async with start_command(guest.connect, "yes & echo $! >&2") as command:
        async with asyncio.timeout(10):
            child = int((await everything(command))["stderr"].split(b"\n")[0])
        assert command.status == 0
        await gone(child)


async def test_output_before_the_end_reaches_a_reader_slower_than_the_grace(guest: Guest) -> None:
    # The shell is gone at once; what it printed waits in the pipe and in the stream.
    async with start_command(guest.connect, "sleep 1000 & head -c 1500000 /dev/zero") as command:
        await asyncio.sleep(2.5)
        assert len((await everything(command))["stdout"]) == 1_500_000
        assert command.status == 0


async def test_leaving_kills_it_and_what_it_has_started(guest: Guest) -> None:
    async with start_command(guest.connect, "trap '' TERM HUP INT; sleep 1000 & echo $!; wait") as command:
        _, child = await anext(aiter(command))
    await gone(int(child))
    await gone(command.pid)


@pytest.mark.parametrize("line", ["sleep 1000", "yes"])
async def test_when_the_host_goes_away_nothing_is_left(guest: Guest, line: str) -> None:
    stream = FrameStream(*await guest.connect(1))
    body = {"service": "command", "command": f"{line} & echo $! >&2; wait", "cwd": "", "env": {}, "stdin": False}
    await stream.send(Kind.OPEN, body)
    pids = [(await stream.answer())["pid"]]
    while len(pids) == 1:
        frame = await stream.receive()
        assert frame is not None
        if frame.body["stream"] == "stderr":
            pids.append(int(frame.body["data"]))
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    stream.writer.transport.abort()
    for pid in pids:
        await gone(pid)


async def test_twenty_at_once_do_not_mix(guest: Guest) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(guest, f"sleep 0.1; echo {n}; exit {n}")) for n in range(20)]
    assert [task.result() for task in tasks] == [(n, f"{n}\n".encode(), b"") for n in range(20)]


async def test_more_than_the_agent_takes_are_refused_and_the_rest_goes_on(guest: Guest) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(64):
            await stack.enter_async_context(start_command(guest.connect, ["sleep", "1000"]))
        with pytest.raises(CommandNotStarted) as refused:
            async with start_command(guest.connect, "true"):
                pass
        assert refused.value.guest_code == "too_many"
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(CommandNotStarted):
                assert await run(guest, "echo again") == (0, b"again\n", b"")
                return


@pytest.mark.parametrize(
    ("command", "options", "code"),
    [
        (["no-such-program"], {}, "not_found"),
        (["./missing"], {}, "not_found"),
        (["/etc/passwd"], {}, "permission"),
        (["/etc"], {}, "permission"),
        ([], {}, "bad_request"),
        ([""], {}, "bad_request"),
        ("a\0b", {}, "bad_request"),
        ("true", {"env": {"A=B": "x"}}, "bad_request"),
        ("true", {"cwd": "missing"}, "not_found"),
        ("true", {"cwd": "/etc/passwd"}, "not_a_directory"),
        ("x" * MAX_COMMAND, {}, "bad_request"),
        ("\ud800", {}, "bad_request"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_cannot_be_started_says_why(
    guest: Guest, command: str | list[str], options: dict[str, object], code: str
) -> None:
    with pytest.raises(CommandNotStarted) as refused:
        await run(guest, command, **options)
    assert refused.value.guest_code == code


async def test_a_folder_that_cannot_be_one_is_not_sent(guest: Guest) -> None:
    with pytest.raises(BadPath):
        await run(guest, "true", cwd="a\0b")


async def test_a_program_without_a_first_line_that_says_how_is_refused(guest: Guest) -> None:
    (guest.home / "nothing").write_text("neither this nor that")
    (guest.home / "nothing").chmod(0o755)
    with pytest.raises(CommandNotStarted) as refused:
        await run(guest, ["./nothing"])
    assert refused.value.guest_code == "bad_request"


async def test_a_command_that_is_not_there_is_the_shells_to_tell(guest: Guest) -> None:
    status, _, complaint = await run(guest, "no-such-program")
    assert status == 127
    assert b"no-such-program" in complaint


async def test_an_open_that_is_not_whole_is_refused(guest: Guest) -> None:
    whole = {"command": "true", "cwd": "", "env": {}, "stdin": False}
    for wrong in ({"command": 5}, {"command": ["a", 5]}, {"env": {"a": 5}}, {"stdin": 1}, {"cwd": None}):
        with pytest.raises(GuestRefused) as refused:
            async with open_service(guest.connect, "command", **{**whole, **wrong}):
                pass
        assert refused.value.guest_code == "bad_request"


@pytest.mark.parametrize(
    "frames",
    [
        [Frame(Kind.OK, {})],
        [Frame(Kind.OK, {"pid": 5}), Frame(Kind.EVENT, {"stream": "stdin", "data": b"x"})],
        [Frame(Kind.OK, {"pid": 5}), Frame(Kind.EVENT, {"stream": "stdout", "data": "x"})],
        [Frame(Kind.OK, {"pid": 5}), Frame(Kind.EVENT, {"stream": "stdout", "data": b""})],
        [Frame(Kind.OK, {"pid": 5}), Frame(Kind.EVENT, {"stdin_taken": 5})],
        [Frame(Kind.OK, {"pid": 5}), Frame(Kind.OK, {"status": "well"})],
        [Frame(Kind.OK, {"pid": 5}), Frame(Kind.MESSAGE, {})],
    ],
    ids=str,
)
async def test_a_guest_that_breaks_the_rules_is_told_from_a_command_that_fails(frames: list[Frame]) -> None:
    with pytest.raises(GuestMisbehaved):
        async with played(frames) as command:
            await everything(command)


async def test_a_guest_that_ends_before_the_command_is_no_end_of_the_command() -> None:
    with pytest.raises(MachineDied):
        async with played([Frame(Kind.OK, {"pid": 5})]) as command:
            await everything(command)
    async with played([Frame(Kind.OK, {"pid": 5})], stdin=True) as command:
        with pytest.raises(MachineDied):
            for _ in range(100):
                await asyncio.wait_for(command.write(bytes(STDIN_WINDOW)), SECONDS)


def test_the_status_of_an_earlier_process_is_not_taken_for_that_of_a_new_one_with_its_number() -> None:
    reaper, statuses = Reaper(), list[int]()
    reaper._unclaimed[5] = 1
    reaper.watch(5, statuses.append, new=True)
    assert not statuses
    reaper._unclaimed[6] = 1
    reaper.watch(6, statuses.append)
    assert statuses == [1]


@contextlib.asynccontextmanager
async def played(frames: list[Frame], *, stdin: bool = False):
    """A command whose guest sends these frames and ends."""
    ours, theirs = socket.socketpair()
    with theirs:

        async def connect(_: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            theirs.sendall(b"".join(map(encode, frames)))
            theirs.shutdown(socket.SHUT_WR)
            return await asyncio.open_connection(sock=ours)

        async with start_command(connect, "any", stdin=stdin) as command:
            yield command


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
