"""One client of a kernel: its five channels over one stream, and who waits for what."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import GuestMisbehaved, GuestUnresponsive, InterpreterError, KernelDied, SessionEnded, TooLarge
from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.channels import MAIN, KernelChannels, open_channels
from interpreter.kernel.framing import Connect
from interpreter.kernel.memory import Room, SessionMemory
from interpreter.kernel.message import Codec, Message, RawMessage
from interpreter.turns import MUCH, in_turns

_INBOX_BYTES: Final = 32 * 1024 * 1024
"""What waits for the readers of one connection. Past that the stream is not read, and the guest's relay stops."""
_MESSAGE_BYTES: Final = 2000
"""What a message takes besides its parts, about."""

Arrival = tuple[str, Message]
"""A channel and a message that came on it."""
OnOutput = Callable[[RawMessage], Awaitable[None]]
"""Gets every message of iopub, whoever's request it belongs to. While it waits nothing more is read."""
OnLate = Callable[[Message], None]
"""Gets the outputs that come when nobody waits any more for the answer to the request that they belong to."""


class Inbox:
    """The messages that belong to one request, in the order in which they came. ``room`` is shared with others."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._items: deque[tuple[Arrival, int]] = deque()
        self._failure: Exception | None = None
        self._arrived = asyncio.Event()
        self._closed = False

    async def get(self) -> Arrival:
        """The next message. Raises what ended the connection, after all that came before."""
        while not self._items:
            if self._failure is not None:
                raise _anew(self._failure)
            self._arrived.clear()
            await self._arrived.wait()
        arrival, size = self._items.popleft()
        self._room.give_back(size)
        if size > MUCH:
            # Its reader is about to write it down, which takes long enough; there may be many.
            await asyncio.sleep(0)
        return arrival

    async def put(self, arrival: Arrival, size: int) -> None:
        """Add a message of ``size`` bytes, waiting while there is no room; dropped when nobody reads any more."""
        while not self._closed and not self._room.fits(size):
            await self._room.freed()
        if not self._closed:
            self._room.take(size)
            self._items.append((arrival, size))
            self._arrived.set()

    def fail(self, error: Exception) -> None:
        """Wake the reader with an error, now or when it has read the rest."""
        self._failure = error
        self._arrived.set()

    def close(self) -> None:
        """Nobody reads any more: drop what is there, so that a ``put`` that waits for room goes on."""
        self._closed = True
        self._room.give_back(sum(size for _, size in self._items))
        self._items.clear()


class KernelConnection:
    """Sends requests to a kernel and sorts what comes back. Made by ``connect_kernel``."""

    def __init__(self, channels: KernelChannels, codec: Codec) -> None:
        self._channels = channels
        channels.on_left_out = self._left_out
        self.codec = codec
        self.on_output: OnOutput | None = None
        self.on_late: OnLate | None = None
        self.on_misbehaved: Callable[[GuestMisbehaved], None] | None = None
        """Told when the kernel has sent what is no message of its own; nothing it says counts until it is restarted."""
        self._inboxes: dict[str, Inbox] = {}
        self._room = Room(_INBOX_BYTES)
        self._sent = Room(_INBOX_BYTES)
        self._failure: InterpreterError | None = None
        self._ended = False

    @property
    def held(self) -> int:
        """Bytes of messages that wait for their readers."""
        return self._room.held

    def share(self, memory: SessionMemory) -> None:
        """Count what is under way, both ways, in the session's memory."""
        self._channels.share(memory.under_way)
        self._sent = memory.sent

    @property
    def is_dead(self) -> bool:
        """Whether there is no kernel behind it at the moment."""
        return self._failure is not None

    @property
    def failure(self) -> InterpreterError | None:
        """Why there is none."""
        return self._failure

    async def send(self, channel: str, message: Message) -> None:
        """Send a message on shell, control or stdin. Raises KernelDied and what else ended the connection."""
        if self._failure is not None:
            raise self._failure.anew()
        try:
            parts = self.codec.serialise(message)
            async with self._sent.holding(sum(map(len, parts))):
                await self._channels.send(channel, parts)
        except KernelDied as error:
            raise (self._failure or error).anew() from None

    @contextmanager
    def replies(self, message: Message) -> Generator[Inbox]:
        """Where the messages that belong to ``message`` arrive; enter it before sending."""
        inbox = Inbox(self._room)
        if self._failure is not None:
            inbox.fail(self._failure)
        self._inboxes[message.header.msg_id] = inbox
        try:
            yield inbox
        finally:
            del self._inboxes[message.header.msg_id]
            inbox.close()

    async def ask(self, channel: str, message: Message, *, timeout: float) -> Message:
        """Send a request and wait for its reply on the same channel. Raises GuestUnresponsive after ``timeout``."""
        with self.replies(message) as inbox:
            try:
                async with deadline(timeout):
                    await self.send(channel, message)
                    while True:
                        arrived_on, reply = await inbox.get()
                        if arrived_on == channel:
                            return reply
            except TimeoutError:
                what = f"the kernel did not answer {message.type} within {timeout:g} s"
                raise GuestUnresponsive(what, hint="Other code may run in it") from None

    def kernel_died(self, error: InterpreterError) -> None:
        """Give an error to all who wait now and all who come, until the kernel is restarted."""
        if self._failure is None:
            self._failure = error.anew()
            for inbox in self._inboxes.values():
                inbox.fail(self._failure)

    def kernel_restarted(self) -> None:
        """There is a new kernel behind the same channels; who waited for the old one waits in vain."""
        self.kernel_died(KernelDied("the kernel was restarted"))
        if not self._ended:
            self._failure = None

    def end(self, error: InterpreterError) -> None:
        """End the connection for good."""
        self._ended = True
        self.kernel_died(error)

    async def receive(self) -> None:
        """Take what comes until the stream ends; then everybody who waits is told."""
        try:
            while True:
                channel, parts = await self._channels.receive()
                try:
                    await self._deliver(channel, parts)
                except GuestMisbehaved as error:
                    # The kernel's own fault, or that of code in it; a new one may speak well again.
                    self._distrust(error)
        except InterpreterError as error:
            self.end(error)

    def _distrust(self, error: GuestMisbehaved) -> None:
        if self._failure is None:
            self.kernel_died(error)
            if self.on_misbehaved is not None:
                self.on_misbehaved(error)

    async def _left_out(self, channel: str, parent: bytes, size: int) -> None:
        # Whatever it was: who waits for it is told, as of an output.
        if channel != "iopub":
            return
        notice = self.codec.oversized(parent, size)
        if self.on_output is not None:
            await self.on_output(notice)
        if inbox := self._inboxes.get(notice.parent_id):
            await inbox.put((channel, notice.whole()), notice.size + _MESSAGE_BYTES)

    async def _deliver(self, channel: str, parts: list[bytes]) -> None:
        if channel == "hb":
            return
        message = self.codec.verify(parts)
        if message.size > MUCH:
            await asyncio.sleep(0)
        if channel == "iopub" and self.on_output is not None:
            await self.on_output(message)
        if inbox := self._inboxes.get(message.parent_id):
            try:
                whole = await _whole(self.codec, message)
            except GuestMisbehaved as error:
                # Signed, so the kernel's own; who waits for it is told, and all else goes on.
                inbox.fail(error)
            else:
                await inbox.put((channel, whole), message.size + _MESSAGE_BYTES)
        elif self.on_late is not None and channel == "iopub" and self._is_ours(message):
            with contextlib.suppress(GuestMisbehaved):
                self.on_late(await _whole(self.codec, message))

    def _is_ours(self, message: RawMessage) -> bool:
        """Whether it is output of a request of this service; the kernel's other clients see to theirs."""
        return message.type in OUTPUT_TYPES and message.parent.get("session") == self.codec.session


def _anew(error: Exception) -> Exception:
    return error.anew() if isinstance(error, InterpreterError) else error


async def _whole(codec: Codec, message: RawMessage) -> Message:
    try:
        await in_turns(message.checking())
    except TooLarge as error:
        if message.type in OUTPUT_TYPES:
            return codec.left_out(message, error.message).whole()
        raise GuestMisbehaved(error.message) from None
    if message.size > MUCH:
        await asyncio.sleep(0)
    whole = message.checked()
    if message.size > MUCH:
        await asyncio.sleep(0)
    return whole


@asynccontextmanager
async def connect_kernel(
    connect: Connect, *, key: bytes, session: str, context: str = MAIN
) -> AsyncGenerator[KernelConnection]:
    """Connect to a context's kernel through the guest's relay, which gives each stream an identity of its own.

    The kernel may have died; the connection then is that of the next one, which a restart starts.
    """
    async with open_channels(connect, context=context, dead=True) as channels:
        connection = KernelConnection(channels, Codec(key, session))
        if channels.dead:
            connection.kernel_died(KernelDied("the kernel has died", hint="Restart it; files are kept"))
        task = asyncio.create_task(connection.receive())
        try:
            yield connection
        finally:
            task.cancel()
            await asyncio.wait({task})
            connection.end(SessionEnded("the session was closed"))
