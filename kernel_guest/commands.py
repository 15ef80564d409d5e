"""Commands: a program run as the user, its output sent as it comes, its input taken, nothing of it left behind.

What it has started and left running ends with it, also what has left its process group; it is told on standard error.

After OPEN the guest answers OK ``{"pid"}``. Then it sends EVENT ``{"stream": "stdout" | "stderr", "data"}``, EVENT
``{"stdin_taken": bytes}``, and at the end OK ``{"status"}`` (negative: a signal). The host sends EVENT ``{"stdin":
data}`` (empty: the end) with at most STDIN_WINDOW bytes not taken yet, and CALL ``{"op": "signal", "number"}``, which
has no answer. So the guest can always read on, and sees at once when the host closes the stream.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from kernel_guest.files import FileRefused, rights_of
from kernel_guest.frames import STDIN_WINDOW, Frame, FrameDecoder, FrameError, Kind, encode
from kernel_guest.groups import Group
from kernel_guest.processes import Reaper
from kernel_guest.streams import streams_of

_READ = 64 * 1024
_MOST = 64
"""Commands at once: each takes descriptors of the agent's."""
_MAX_PROCESSES = 256
_LIKELY_VICTIM = "500"
_START_CODES = {
    errno.ENOTDIR: "not_found",
    errno.E2BIG: "bad_request",
    errno.ENOEXEC: "bad_request",
    errno.ENAMETOOLONG: "bad_request",
}
_GRACE_SECONDS = 1.0
"""How long output is waited for when the command itself has ended and something that it started has not."""
_GRACE_BYTES = 1024 * 1024
"""What is still read from each pipe after that; the most that a pipe can hold."""
_LEFT_SECONDS = 0.2
"""How long what a command has left running may take to end by itself before it counts as left."""
_LEFT = b"[What the command left running was ended with it. To let it run on, run the command in the background.]\n"


@dataclass(frozen=True, slots=True)
class Command:
    """What the host wants run. ``stdin``: whether it will send input; else there is none."""

    arguments: list[str]
    folder: Path
    environment: dict[str, str]
    stdin: bool


def command_of(body: Mapping[str, Any], home: Path) -> Command:
    """The command that an OPEN frame asks for; relative folders start at ``home``. Raises FileRefused."""
    arguments: list[object]
    match body:
        case {"command": str(line), "cwd": str(folder), "env": dict(), "stdin": bool(stdin)}:
            arguments = [_shell(), "-c", line]
        case {"command": list(), "cwd": str(folder), "env": dict(), "stdin": bool(stdin)}:
            arguments = cast("list[object]", body["command"])
        case _:
            raise FileRefused("bad_request", "a command has command, cwd, env and stdin")
    changes = cast("dict[str, object]", body["env"])
    texts = [text for text in arguments if isinstance(text, str)]
    values = {name: value for name, value in changes.items() if isinstance(value, str)}
    if not texts or not texts[0] or len(texts) != len(arguments) or len(values) != len(changes):
        raise FileRefused("bad_request", "a command and its environment are text")
    if any("\0" in text for text in (folder, *texts, *values, *values.values())):
        raise FileRefused("bad_request", "text with a zero byte cannot be passed to a program")
    return Command(texts, home / folder, {**os.environ, "HOME": str(home), **values}, stdin)


class RunningCommand:
    """A command that runs, in a session and process group of its own."""

    _all: ClassVar[set["RunningCommand"]] = set()
    _numbers: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self, process: "subprocess.Popen[bytes]", reaper: Reaper, group: Group) -> None:
        self.pid = process.pid
        self._group = group
        self._process = process
        self._exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._closing = contextlib.ExitStack()
        self._outputs: list[tuple[str, _Output]] = []
        for name, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if pipe is not None:
                self._closing.callback(pipe.close)
                self._outputs.append((name, _Output(pipe.fileno())))
        self._input = None if process.stdin is None else _Input(process.stdin.fileno(), process.stdin.close)
        self._sending = asyncio.Lock()
        self._killed = False
        self._all.add(self)
        reaper.watch(self.pid, self._ended, new=True)

    @classmethod
    def start(cls, command: Command, user: int | None, reaper: Reaper, groups: Group) -> "RunningCommand":
        """Start a command as ``user`` (None: as the agent), in a group of its own below ``groups``. Raises FileRefused.

        It does not wait: the status of a child must not reach the reaper before the reaper knows of it.
        """
        if len(cls._all) >= _MOST:
            raise FileRefused("too_many", f"there are {_MOST} commands already")
        try:
            with rights_of(user):
                # The child enters it as root; "/." asks whether the user may.
                os.stat(f"{command.folder}/.")  # noqa: PTH116  (a Path drops the dot)
        except OSError as error:
            code = FileRefused.of(error).code
            raise FileRefused(code, f"{command.folder} cannot be worked in: {error.strerror}") from error
        group = Group.make(groups.folder, str(next(cls._numbers)), whole=False)
        try:
            with _confined(user), group.joining() as join:
                process = subprocess.Popen(
                    command.arguments,
                    cwd=command.folder,
                    env=command.environment,
                    stdin=subprocess.PIPE if command.stdin else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    user=user,
                    group=user,
                    extra_groups=None if user is None else [],
                    preexec_fn=join,
                )
        except OSError as error:
            group.discard()
            code = _START_CODES.get(error.errno or 0) or FileRefused.of(error).code
            raise FileRefused(code, f"{command.arguments[0]}: {error.strerror}") from error
        except (ValueError, subprocess.SubprocessError) as error:
            group.discard()
            raise FileRefused("bad_request", str(error)) from error
        return cls(process, reaper, group)

    async def serve(self, connection: socket.socket) -> None:
        """Talk to the host until the command has ended and the host has gone; then nothing of it is left."""
        async with streams_of(connection) as (reader, writer):
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._send(writer, Kind.OK, {"pid": self.pid})
            listening = asyncio.create_task(self._listen(reader))
            tasks.append(listening)
            running = asyncio.create_task(self._run(writer))
            tasks.append(running)
            if self._input is not None:
                tasks.append(asyncio.create_task(self._feed(self._input, writer)))
            await asyncio.wait({listening, running}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            # The host closes when it has the answer: a close of ours could reset what is under way.
            await listening
        finally:
            self.kill()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._closing.close()
            if self._input is not None:
                self._input.close()
            await self._group.remove()

    def kill(self) -> None:
        """SIGKILL to it and all that it has started, once: when all are gone its number may become another's."""
        self._signal(signal.SIGKILL)
        self._group.kill()
        self._killed = True

    def _ended(self, status: int) -> None:
        # Popen would wait for that number again when it is collected, and by then it may be another's.
        self._process.returncode = status
        self._all.discard(self)
        if not self._exited.done():
            self._exited.set_result(status)

    def _signal(self, number: int) -> None:
        if self._killed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _run(self, writer: asyncio.StreamWriter) -> None:
        pumps = [asyncio.create_task(self._pump(name, output, writer)) for name, output in self._outputs]
        try:
            status = await self._exited
            late = asyncio.get_running_loop().call_later(_GRACE_SECONDS, self._stop_waiting)
            try:
                await asyncio.gather(*pumps)
            finally:
                late.cancel()
        finally:
            for pump in pumps:
                pump.cancel()
            # Before the pipes are closed: a number that is watched must not become that of another.
            await asyncio.gather(*pumps, return_exceptions=True)
        if await self._has_left_something():
            self.kill()
            await self._send(writer, Kind.EVENT, {"stream": "stderr", "data": _LEFT})
        self.kill()
        await self._send(writer, Kind.OK, {"status": status})

    async def _has_left_something(self) -> bool:
        end = asyncio.get_running_loop().time() + _LEFT_SECONDS
        while left := not self._killed and self._is_populated():
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(_LEFT_SECONDS / 10)
        return left

    def _is_populated(self) -> bool:
        if self._group.folder is not None:
            return self._group.is_populated()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, 0)
            return True
        return False

    def _stop_waiting(self) -> None:
        for _, output in self._outputs:
            output.stop_waiting()

    async def _pump(self, name: str, output: "_Output", writer: asyncio.StreamWriter) -> None:
        while data := await output.read():
            await self._send(writer, Kind.EVENT, {"stream": name, "data": data})
            # With both ends quick none of these waits, and the loop has others to serve.
            await asyncio.sleep(0)

    async def _feed(self, pipe: "_Input", writer: asyncio.StreamWriter) -> None:
        while True:
            taken = await pipe.pass_on()
            await self._send(writer, Kind.EVENT, {"stdin_taken": taken})

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        decoder = FrameDecoder()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_READ):
                for frame in decoder.feed(data):
                    self._take(frame)

    def _take(self, frame: Frame) -> None:
        match frame:
            case Frame(Kind.EVENT, {"stdin": bytes(data)}) if self._input is not None:
                self._input.add(data)
            case Frame(Kind.CALL, {"op": "signal", "number": int(number)}) if 0 < number < signal.NSIG:
                self._signal(number)
            case _:
                raise FrameError(f"{frame.kind} is nothing that a command takes")

    async def _send(self, writer: asyncio.StreamWriter, kind: Kind, body: dict[str, Any]) -> None:
        async with self._sending:
            writer.write(encode(Frame(kind, body)))
            await writer.drain()


class _Output:
    """One of the pipes that a command writes to."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._waiting: asyncio.Future[None] | None = None
        self._left: int | None = None

    async def read(self) -> bytes:
        """The next bytes, none at the end."""
        while True:
            try:
                data = os.read(self._descriptor, _READ)
            except BlockingIOError:
                if self._left is not None:
                    return b""
                await self._readable()
                continue
            if self._left is not None:
                if self._left <= 0:
                    return b""
                self._left -= len(data)
            return data

    def stop_waiting(self) -> None:
        """From now on what is in the pipe is all there is."""
        self._left = _GRACE_BYTES
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        loop.add_reader(self._descriptor, lambda: waiting.done() or waiting.set_result(None))
        try:
            await waiting
        finally:
            loop.remove_reader(self._descriptor)


class _Input:
    """The pipe that a command reads from, and what waits to go into it."""

    def __init__(self, descriptor: int, close: Any) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._close = close
        self._open = True
        self._buffer = bytearray()
        self._ending = False
        self._changed = asyncio.Event()

    def add(self, data: bytes) -> None:
        """Take what the host sent, nothing for the end. Raises FrameError when it is more than may wait."""
        if len(self._buffer) + len(data) > STDIN_WINDOW:
            raise FrameError("more input than there is room for")
        self._buffer += data
        self._ending = self._ending or not data
        self._changed.set()

    async def pass_on(self) -> int:
        """Wait for input and pass some of it on; how many bytes. What the command does not want is dropped."""
        while not self._buffer:
            if self._ending:
                self.close()
            self._changed.clear()
            await self._changed.wait()
        count = len(self._buffer)
        while self._open:
            try:
                count = os.write(self._descriptor, self._buffer)
                break
            except BlockingIOError:
                await self._writable()
            except BrokenPipeError:
                self.close()
        del self._buffer[:count]
        return count

    def close(self) -> None:
        """Close the pipe, once."""
        if self._open:
            self._open = False
            self._close()

    async def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._descriptor, lambda: waiting.done() or waiting.set_result(None))
        try:
            await waiting
        finally:
            loop.remove_writer(self._descriptor)


@contextmanager
def _confined(user: int | None) -> Generator[None]:
    """Let what is started here have fewer processes and go first when memory runs out, from its first moment on.

    The agent takes both on, as a child has its parent's: set afterwards they would miss what the child has started by
    then. The limit it keeps, as limits on processes do not hold for root; the other is for this moment only.
    """
    if user is None:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))
    score = Path("/proc/self/oom_score_adj")
    before = score.read_text(encoding="ascii")
    score.write_text(_LIKELY_VICTIM, encoding="ascii")
    try:
        yield
    finally:
        score.write_text(before, encoding="ascii")


def _shell() -> str:
    return next((shell for shell in ("/bin/bash", "/bin/sh") if Path(shell).exists()), "/bin/sh")
