"""Commands in a session: a program with its output, its input and its status, apart from the kernel."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Literal, cast

from interpreter.errors import CommandNotStarted, GuestMisbehaved, GuestRefused, InterpreterError, MachineDied
from interpreter.kernel.control import integer
from interpreter.kernel.framing import Connect, FrameStream, error_of, open_service
from interpreter.kernel.paths import check_path
from kernel_guest.frames import STDIN_WINDOW, Frame, Kind

Output = tuple[Literal["stdout", "stderr"], bytes]
MAX_COMMAND: Final = 60 * 1024
"""Most bytes of a command and its environment together."""
_MAX_DATA: Final = 1024 * 1024
_PIECE: Final = 64 * 1024
_HELD: Final = 16
"""Pieces of output that are held for a slow reader; then the command waits."""
_SIGNALS: Final = range(1, 65)


class Command:
    """A command that runs. Made by ``start_command``.

    Iterate over it for what it prints, ``(stream, data)`` as it comes; the iteration ends when the command has, and
    ``status`` is known then. A command that prints much waits for its reader, and takes no input while it waits.
    """

    def __init__(self, stream: FrameStream, *, stdin: bool) -> None:
        self.pid = integer(stream.opened, "pid")
        self.status: int | None = None
        """How it ended: its exit status, negative for a signal; None until it has been read to its end."""
        self._stream = stream
        self._stdin = stdin
        self._outputs: asyncio.Queue[Output | None] = asyncio.Queue(_HELD)
        self._failure: InterpreterError | None = None
        self._ended: int | None = None
        self._under_way = 0
        self._room = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (output := await self._outputs.get()) is not None:
            yield output
        # For whoever iterates again.
        self._outputs.put_nowait(None)
        if self._failure is not None:
            raise self._failure.anew()
        self.status = self._ended

    async def wait(self) -> int:
        """Drop what it still prints, and return its status. Raises MachineDied, GuestMisbehaved."""
        async for _ in self:
            continue
        return cast("int", self.status)

    async def write(self, data: bytes) -> None:
        """Give it input, waiting while it takes none; once it has ended, nothing happens.

        Raises MachineDied, GuestMisbehaved; ValueError when it was started without ``stdin``.
        """
        self._check_stdin()
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while self._under_way + len(piece) > STDIN_WINDOW and not self._over:
                self._room.clear()
                await self._room.wait()
            self._under_way += len(piece)
            await self._send(Kind.EVENT, {"stdin": piece})

    async def close_stdin(self) -> None:
        """End its input. Raises as ``write`` does."""
        self._check_stdin()
        await self._send(Kind.EVENT, {"stdin": b""})

    async def signal(self, number: int) -> None:
        """Send a signal to it and what it has started. Raises MachineDied; ValueError when there is no such signal."""
        if number not in _SIGNALS:
            raise ValueError(f"there is no signal {number}")
        await self._send(Kind.CALL, {"op": "signal", "number": number})

    async def receive(self) -> None:
        """Take what the guest sends, to the end of the command."""
        try:
            while self._ended is None:
                frame = await self._stream.receive()
                if frame is None:
                    raise MachineDied("the guest ended before the command")
                await self._take(frame)
        except InterpreterError as error:
            self._failure = error.anew()
        except OSError as error:
            self._failure = MachineDied(f"the machine ended while a command ran: {error}")
        self._room.set()
        await self._outputs.put(None)

    @property
    def _over(self) -> bool:
        return self._ended is not None or self._failure is not None

    def _check_stdin(self) -> None:
        if not self._stdin:
            raise ValueError("the command was started without stdin")

    async def _take(self, frame: Frame) -> None:
        match frame:
            case Frame(Kind.EVENT, {"stream": "stdout" | "stderr" as name, "data": bytes(data)}):
                if not 0 < len(data) <= _MAX_DATA:
                    raise GuestMisbehaved(f"the guest sent {len(data)} bytes of output at once")
                await self._outputs.put((name, data))
            case Frame(Kind.EVENT, {"stdin_taken": int(taken)}) if 0 < taken <= self._under_way:
                self._under_way -= taken
                self._room.set()
            case Frame(Kind.OK):
                self._ended = integer(frame.body, "status")
            case Frame(Kind.ERROR):
                raise error_of(frame)
            case _:
                raise GuestMisbehaved(f"the guest sent {frame.kind} where a command's output belongs")

    async def _send(self, kind: Kind, body: dict[str, object]) -> None:
        if self._over:
            if self._failure is not None:
                raise self._failure.anew()
            return
        try:
            await self._stream.send(kind, body)
        except ConnectionError as error:
            raise MachineDied("the machine ended while a command ran") from error


@asynccontextmanager
async def start_command(
    connect: Connect,
    command: str | Sequence[str],
    *,
    cwd: str = "",
    env: Mapping[str, str] | None = None,
    stdin: bool = False,
) -> AsyncGenerator[Command]:
    """Run a command as the session's user: text by the shell, a sequence as it is. Leaving kills it and its group.

    ``cwd`` starts in the home folder; ``env`` adds to the session's environment; without ``stdin`` its input is
    empty. Raises CommandNotStarted with what the guest said, BadPath for ``cwd``, MachineDied.
    """
    arguments = command if isinstance(command, str) else list(command)
    environment = dict(env or {})
    _check(arguments, environment)
    folder = check_path(cwd) if cwd else ""
    service = open_service(connect, "command", command=arguments, cwd=folder, env=environment, stdin=stdin)
    async with AsyncExitStack() as closing:
        try:
            running = Command(await closing.enter_async_context(service), stdin=stdin)
        except GuestRefused as error:
            message = f"the command could not be started: {error.message}"
            raise CommandNotStarted(message, guest_code=error.guest_code) from error
        except ConnectionError as error:
            raise MachineDied("the machine ended while a command was started") from error
        receiving = asyncio.create_task(running.receive())
        try:
            yield running
        finally:
            receiving.cancel()
            await asyncio.wait({receiving})


def _check(command: str | list[str], environment: dict[str, str]) -> None:
    texts = [*([command] if isinstance(command, str) else command), *environment, *environment.values()]
    try:
        size = sum(len(text.encode()) + 8 for text in texts)
    except UnicodeEncodeError:
        raise CommandNotStarted("a command is text that UTF-8 can hold", guest_code="bad_request") from None
    if size > MAX_COMMAND:
        message = f"a command and its environment have at most {MAX_COMMAND} bytes, not {size}"
        raise CommandNotStarted(message, guest_code="bad_request", hint="Write it to a file and run that")
