"""The Jupyter clients of a kernel: each with channels of its own, all with the kernel's output.

What Jupyter Server does for its kernels is done here: what a client misses while it is away is kept for it, a kernel
that dies is started again, and the kernel's state and last activity are known.
"""

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal

import structlog

from interpreter.clock import Clock
from interpreter.deadline import deadline
from interpreter.engine.kernel import RESTART_TIMEOUT, Kernel, KernelChange
from interpreter.errors import Busy, Conflict, GuestMisbehaved, GuestUnresponsive, InterpreterError, TooLarge
from interpreter.gateway.outbox import Item, Outbox
from interpreter.gateway.pending import Answer, Pending
from interpreter.kernel.channels import KernelChannels, open_channels
from interpreter.kernel.framing import Connect
from interpreter.kernel.limits import parse_json
from interpreter.kernel.memory import SessionMemory
from interpreter.kernel.message import Codec, RawMessage
from interpreter.kernel.websocket import ClientMessage
from interpreter.rate import Rate

log = structlog.get_logger(__name__)

KernelState = Literal["starting", "idle", "busy", "restarting", "dead"]

_MAX_CLIENTS: Final = 64
_MAX_AWAY: Final = 8
"""Clients that are away and whose messages are kept; past that the one that left first is forgotten."""
_MAX_BUSY: Final = 1000
_MAX_ID: Final = 200
_FAREWELL_SECONDS: Final = 1.0
_RESTARTS: Final = 5
_STABLE_SECONDS: Final = 60.0
"""A kernel that dies more than ``_RESTARTS`` times, each sooner than this after the last, stays dead."""
_NO_ACTIVITY: Final = frozenset(
    {
        *("kernel_info_request", "comm_info_request", "history_request", "shutdown_request"),
        *("complete_request", "inspect_request", "is_complete_request"),
    }
)
"""What front ends send by themselves, or while somebody only looks: a tab that reconnects has not used its kernel."""


class KernelClient:
    """One client, by its session's name; it may leave and come back."""

    def __init__(self, session: str, channels: KernelChannels, codec: Codec, limit: int, memory: SessionMemory) -> None:
        self.session = session
        self.turn = asyncio.Lock()
        """Held by who takes its messages: of two connections at once the later one begins when the first has ended."""
        self.pending = Pending(memory.kept)
        self._channels = channels
        self._codec = codec
        channels.share(memory.under_way)
        self._sent = memory.sent
        stalled = "it took nothing of what was sent to it"
        self._outbox = Outbox(limit, memory.kept, self._cut, lambda: self._lose(stalled))
        self._lost: asyncio.Future[str] | None = None
        # What a kernel does writes the service's log.
        self._log_rate = Rate(1 / 60, 10)
        self._reading = asyncio.create_task(self._read())

    @property
    def is_there(self) -> bool:
        """Whether it is connected."""
        return self._lost is not None and not self._lost.done()

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes for it."""
        return self._outbox.closed

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[asyncio.Future[str]]:
        """While the block runs it is there. Yields what tells why the connection must be closed, should it have to."""
        self._lose("the same client connected anew")
        lost = self._lost = asyncio.get_running_loop().create_future()
        await self._outbox.set_present(True)
        try:
            yield lost
        finally:
            if self._lost is lost:
                self._lost = None
                await self._outbox.set_present(False)
            if self.is_over:
                self._forget_all()

    async def send(self, message: ClientMessage) -> None:
        """Send to the kernel, signed. Raises KernelDied."""
        self.pending.sent(message)
        async with self._sent.holding(sum(map(len, message.parts))):
            await self._channels.send(message.channel, self._codec.signed(message.parts))

    async def receive(self) -> Item:
        """The next message for it. Raises KernelDied when no more come."""
        return await self._outbox.get()

    async def give_back(self, item: Item) -> None:
        """A message that it did not get after all."""
        await self._outbox.give_back(item)

    def left_out(self, message: RawMessage, why: str) -> RawMessage:
        """What it gets in place of a message that cannot be passed to it."""
        return self._codec.left_out(message, why)

    async def put(self, channel: str, message: RawMessage) -> None:
        """A message for it."""
        await self._outbox.put(channel, message)

    async def close(self, why: str) -> None:
        """Its kernel is gone, or it is forgotten."""
        await self._outbox.close()
        if not self.is_there:
            self._forget_all()
        self._lose(why)
        self._reading.cancel()
        await asyncio.wait({self._reading})

    async def _read(self) -> None:
        try:
            while True:
                channel, parts = await self._channels.receive()
                if channel in {"hb", "iopub"}:
                    continue
                try:
                    message = self._codec.verify(parts)
                except GuestMisbehaved as error:
                    # Its output is no better, then, and so the kernel is started again; this client is told of that.
                    if self._log_rate.take():
                        log.warning("a kernel's reply was left out", error=error.message)
                    continue
                if channel != "stdin":
                    self.pending.replied(message.parent_id)
                await self._outbox.put(channel, message)
        except InterpreterError as error:
            await self._outbox.close()
            self._lose(error.message)

    def _forget_all(self) -> None:
        self._outbox.forget()
        self.pending.clear()

    def _lose(self, why: str) -> None:
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(why)

    def _cut(self, message: RawMessage) -> RawMessage:
        text = "[what was printed from here on was not kept while nobody was connected]\n"
        return self._codec.notice("stream", {"name": "stderr", "text": text}, message.parent)


class KernelClients:
    """All clients of one kernel, and what they are told of it.

    With ``restarts`` a kernel that dies is started again also when nobody is connected.
    """

    def __init__(
        self,
        kernel: Kernel,
        connect: Connect,
        clock: Clock,
        *,
        limit: int,
        restarts: bool,
        memory: SessionMemory,
        on_use: Callable[[], None],
    ) -> None:
        self.state: KernelState = "idle"
        self.last_activity = clock.now()
        self._kernel = kernel
        self._connect = connect
        self._clock = clock
        self._limit = limit
        self._restarts = restarts
        self._memory = memory
        self._on_use = on_use
        self._clients: dict[str, tuple[KernelClient, AsyncExitStack]] = {}
        self._joining = asyncio.Lock()
        self._busy: dict[str, None] = {}
        self._deaths: deque[float] = deque(maxlen=_RESTARTS + 1)
        self._told_by_caller = False
        self.shut_down = asyncio.Event()
        """Set when a client had the kernel end for good, by a message."""
        self.idle = asyncio.Event()
        """Set while no code runs."""
        self.idle.set()
        self._ends_for_good = False
        self._settled = asyncio.Event()
        self._settled.set()
        self._telling = asyncio.Lock()
        """So that what clients are told of their kernel comes in order."""
        self._tasks: set[asyncio.Task[None]] = set()
        kernel.connection.on_output = self._output
        kernel.watchers.append(self._changed)
        if kernel.is_dead:
            # It died under an earlier service, or while none was there.
            self._changed("died", None)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return sum(client.is_there for client, _ in self._clients.values())

    @asynccontextmanager
    async def join(self, session: str | None) -> AsyncGenerator[tuple[KernelClient, asyncio.Future[str]]]:
        """Be the client of that session until the block is left; what comes after that is kept for the next time.

        Without a session's name nothing is kept. Raises Busy, Conflict when the kernel is dead, GuestRefused.
        """
        name = session or uuid.uuid4().hex
        client = await self._client(name)
        try:
            async with client.connected() as lost:
                yield client, lost
        finally:
            # Its page may be loading anew: time counts from here, so that the kernel is there when it comes back.
            self._on_use()
            if session is None:
                await self._forget(name, "it left")
            await self._forget_those_away()

    async def send(self, client: KernelClient, message: ClientMessage) -> None:
        """Send a client's message to the kernel, or the next one while that is started. Raises KernelDied."""
        with contextlib.suppress(TimeoutError):
            async with deadline(RESTART_TIMEOUT):
                await self._settled.wait()
        if message.msg_type == "shutdown_request":
            self._ends_for_good = not parse_json(message.parts[3]).get("restart")
        await client.send(message)
        if self.state == "dead":
            await self._give(self._owed(self._cause()))

    async def restart(self) -> None:
        """Restart the kernel for a client that knows what it does, so that nobody is told of a death."""
        self._told_by_caller = True
        try:
            await self._kernel.restart()
        finally:
            self._told_by_caller = False

    async def close(self, why: str) -> None:
        """The kernel is gone for good: tell all clients why, and end their connections."""
        self.state = "dead"
        self._settled.set()
        for task in self._tasks:
            task.cancel()
        # A client that takes nothing is not waited for: its session ends now.
        with contextlib.suppress(TimeoutError):
            async with deadline(_FAREWELL_SECONDS):
                await self._give(self._owed(why))
                await self._tell_state("dead", reason=why)
        for name in list(self._clients):
            await self._forget(name, why)

    async def _client(self, name: str) -> KernelClient:
        if client := await self._known(name):
            return client
        try:
            async with deadline(RESTART_TIMEOUT):
                await self._settled.wait()
        except TimeoutError:
            raise GuestUnresponsive("the kernel has not come back from its restart") from None
        async with self._joining:
            if client := await self._known(name):
                return client
            if self.state == "dead":
                raise Conflict("the kernel has died", hint="Restart it")
            if len(self._clients) >= _MAX_CLIENTS:
                raise Busy(f"{_MAX_CLIENTS} clients use this kernel already")
            async with AsyncExitStack() as stack:
                channels = await stack.enter_async_context(
                    open_channels(self._connect, context=self._kernel.context, iopub=False)
                )
                codec = self._kernel.connection.codec
                client = KernelClient(name, channels, codec, self._limit, self._memory)
                self._clients[name] = client, stack.pop_all()
            return client

    async def _known(self, name: str) -> KernelClient | None:
        if name not in self._clients:
            return None
        client, _ = self._clients[name]
        if client.is_over:
            await self._forget(name, "its connection ended")
            return None
        return client

    async def _forget(self, name: str, why: str) -> None:
        if name in self._clients:
            client, stack = self._clients.pop(name)
            await client.close(why)
            await stack.aclose()

    async def _forget_those_away(self) -> None:
        away = [name for name, (client, _) in self._clients.items() if not client.is_there]
        for name in away[: max(len(away) - _MAX_AWAY, 0)]:
            await self._forget(name, "it was away")

    async def _output(self, message: RawMessage) -> None:
        if message.type == "status":
            self._note_state(message)
        if message.parent_type not in _NO_ACTIVITY and message.type != "iopub_welcome":
            self.last_activity = self._clock.now()
            self._on_use()
        await self._publish(message)

    def _note_state(self, message: RawMessage) -> None:
        # By request: one that is answered beside a cell that runs (kernel_info, on the control channel) ends nothing.
        try:
            state = message.content().get("execution_state")
        except (GuestMisbehaved, TooLarge):
            return
        for client, _ in self._clients.values():
            client.pending.noted(message.parent_id, str(state))
        if state == "busy" and len(self._busy) < _MAX_BUSY and len(message.parent_id) <= _MAX_ID:
            self._busy[message.parent_id] = None
        elif state == "idle":
            self._busy.pop(message.parent_id, None)
        if self._busy:
            self.state = "busy"
            self.idle.clear()
        elif state == "idle":
            self.state = "idle"
            self.idle.set()

    def _changed(self, change: KernelChange, status: int | None) -> None:
        self._busy.clear()
        self.idle.set()
        if change in {"restarting", "died"}:
            # Now: what is asked from here on is for the next kernel.
            why = "the kernel was restarted" if change == "restarting" else self._cause()
            self._start(self._give(self._owed(why)))
        if change == "restarting":
            self.state = "restarting"
            self._settled.clear()
        elif change == "restarted":
            self.state = "idle"
            self._ends_for_good = False
            self._settled.set()
            if not self._told_by_caller:
                self._start(self._tell_state("restarting"))
        elif change == "died" and self._ends_for_good and self._restarts:
            self.state = "dead"
            self.shut_down.set()
        elif change == "died" and self.state == "restarting":
            self._stay_dead("the kernel could not be restarted")
        elif change == "died":
            self.state = "dead"
            self._settled.clear()
            self._start(self._revive(status))

    async def _revive(self, status: int | None) -> None:
        self._deaths.append(self._clock.elapsed())
        often = len(self._deaths) > _RESTARTS and self._deaths[-1] - self._deaths[0] < _STABLE_SECONDS
        if (self._restarts or self._clients) and not often:
            # Clients are told by what changes then.
            with contextlib.suppress(InterpreterError):
                await self._kernel.restart()
            return
        self._stay_dead(f"the kernel died (status {status})")

    def _stay_dead(self, why: str) -> None:
        self.state = "dead"
        self._settled.set()
        self._start(self._tell_state("dead", reason=why))

    async def _tell_state(self, state: KernelState, **more: str) -> None:
        notice = self._kernel.connection.codec.notice("status", {"execution_state": state, **more}, {})
        async with self._telling:
            await self._publish(notice)

    def _owed(self, why: str) -> list[tuple[KernelClient, Answer]]:
        """What clients wait for that a kernel that is gone does not give them any more."""
        codec = self._kernel.connection.codec
        clients = [client for client, _ in self._clients.values()]
        return [(client, answer) for client in clients for answer in client.pending.answers(codec, why)]

    async def _give(self, owed: list[tuple[KernelClient, Answer]]) -> None:
        async with self._telling:
            for client, (channel, message) in owed:
                await (self._publish(message) if channel == "iopub" else client.put(channel, message))

    def _cause(self) -> str:
        error = self._kernel.connection.failure
        return f"{error.message if error else 'the kernel died'}; its variables are gone, files are kept"

    async def _publish(self, message: RawMessage) -> None:
        for client, _ in list(self._clients.values()):
            await client.put("iopub", message)

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
