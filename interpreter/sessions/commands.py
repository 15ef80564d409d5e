"""Shell commands of a session: followed while they run, in the background when that was asked for."""

import asyncio
import codecs
import contextlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from interpreter.clock import Clock
from interpreter.deadline import deadline
from interpreter.engine.session import Session
from interpreter.errors import Busy, InterpreterError, MachineDied, NotFound
from interpreter.kernel.command import Command, start_command
from interpreter.sessions.executions import CAUSE_SECONDS
from interpreter.sessions.journal import KEPT, Journal, forget_oldest
from interpreter.sessions.outcome import CommandOutcome, Piece
from interpreter.settings import Settings

_MAX_RUNNING: Final = 50
_TERM_SECONDS: Final = 2.0
_SIGTERM, _SIGKILL = 15, 9


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """A command and how to run it. ``timeout`` is in seconds."""

    command: str
    cwd: str = ""
    env: dict[str, str] = field(default_factory=dict[str, str])
    timeout: float | None = None
    background: bool = False


class RunningCommand:
    """One command, from its start on. ``outcome`` is there when it has ended."""

    def __init__(self, request: CommandRequest, journal: Journal, clock: Clock) -> None:
        self.id = uuid.uuid4().hex
        self.request = request
        self.journal = journal
        self.started_at = clock.now()
        self.began = clock.elapsed()
        """The same, in seconds as they pass."""
        self.ended_at: float | None = None
        self.outcome: CommandOutcome | None = None
        self.done = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def answer(self) -> Iterator[Piece]:
        """How it ended and what it printed, as a JSON object in pieces; null as long as it runs."""
        if self.outcome is None:
            return iter([b"null"])
        return self.outcome.members({name: self.journal.printed(name) for name in ("stdout", "stderr")})

    @property
    def state(self) -> Literal["running", "done"]:
        """Where it is."""
        return "done" if self.done.is_set() else "running"


class Commands:
    """All commands of one session."""

    def __init__(self, session: Session, env: dict[str, str], settings: Settings, clock: Clock) -> None:
        self._session = session
        self._room = session.memory.kept
        self._room.forget.append(lambda: forget_oldest(self._ended))
        self._env = env
        self._settings = settings
        self._clock = clock
        self._running: dict[str, RunningCommand] = {}
        self._ended: dict[str, RunningCommand] = {}
        self._over: InterpreterError | None = None
        self._closed = asyncio.Event()

    @property
    def busy(self) -> bool:
        """Whether any runs that somebody waits for; those in the background keep no session alive."""
        return any(not command.request.background for command in self._running.values())

    def all(self) -> list[RunningCommand]:
        """Those that run and those that ended not long ago, oldest first."""
        return [*self._ended.values(), *self._running.values()]

    def find(self, command_id: str) -> RunningCommand:
        """One of them. Raises NotFound."""
        found = self._running.get(command_id) or self._ended.get(command_id)
        if found is None:
            raise NotFound(f"there is no command {command_id[:64]!r} in this session any more")
        return found

    def start(self, request: CommandRequest) -> RunningCommand:
        """Start a command. Raises Busy. That it could not be started is in its result."""
        if len(self._running) >= _MAX_RUNNING:
            raise Busy(f"{len(self._running)} commands run in this session already", retry_after=1)
        journal = Journal(self._settings.output_limit, self._room)
        running = RunningCommand(request, journal, self._clock)
        self._running[running.id] = running
        running.task = asyncio.create_task(self._run(running))
        return running

    async def stop(self, running: RunningCommand) -> None:
        """End a command and what it has started, and wait for that."""
        if running.task is not None and not running.done.is_set():
            running.task.cancel()
            await asyncio.wait({running.task})

    async def close(self, error: InterpreterError) -> None:
        """The session ends, for the reason that ``error`` gives."""
        self._over = error
        self._closed.set()
        for running in list(self._running.values()):
            await self.stop(running)

    async def _run(self, running: RunningCommand) -> None:
        request = running.request
        ended = CommandOutcome(command_id=running.id, status="cancelled")
        try:
            connect, env = self._session.vsock.connect, {**self._env, **request.env}
            async with start_command(connect, request.command, cwd=request.cwd, env=env) as command:
                running.journal.add({"type": "started", "command_id": running.id, "pid": command.pid})
                ended = await self._follow(running, command)
        except InterpreterError as error:
            ended = CommandOutcome(command_id=running.id, status="failed", error=error.as_json())
            if isinstance(error, MachineDied):
                with contextlib.suppress(TimeoutError):
                    async with deadline(CAUSE_SECONDS):
                        await self._closed.wait()
        finally:
            self._finish(running, ended)

    async def _follow(self, running: RunningCommand, command: Command) -> CommandOutcome:
        timeout = running.request.timeout
        reading = asyncio.create_task(_read(running.journal, command))
        try:
            await asyncio.wait({reading}, timeout=timeout)
            if not reading.done():
                for number in (_SIGTERM, _SIGKILL):
                    await command.signal(number)
                    await asyncio.wait({reading}, timeout=_TERM_SECONDS)
                return CommandOutcome(command_id=running.id, status="timeout", exit_code=command.status)
            await reading
        finally:
            reading.cancel()
        status = "ok" if command.status == 0 else "error"
        return CommandOutcome(command_id=running.id, status=status, exit_code=command.status)

    def _finish(self, running: RunningCommand, ended: CommandOutcome) -> None:
        running.ended_at = self._clock.now()
        if self._over is not None and ended.status in {"cancelled", "failed"}:
            ended = ended.model_copy(update={"status": "cancelled", "error": self._over.as_json()})
        duration = round(self._clock.elapsed() - running.began, 6)
        running.outcome = ended.model_copy(
            update={"truncated": running.journal.truncated, "duration_seconds": duration}
        )
        running.journal.add(running.outcome.event())
        running.journal.close()
        self._running.pop(running.id, None)
        self._ended[running.id] = running
        while len(self._ended) > KEPT:
            forget_oldest(self._ended)
        running.done.set()


async def _read(journal: Journal, command: Command) -> None:
    # A character may be cut in two between pieces.
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
    async for name, data in command:
        if text := decoders[name].decode(data):
            journal.add_output({"type": "stream", "name": name, "text": text})
    for name, decoder in decoders.items():
        if text := decoder.decode(b"", final=True):
            journal.add_output({"type": "stream", "name": name, "text": text})
