"""One client of a kernel: its five channels over one stream, and who waits for what."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

from interpreter.errors import InterpreterError, KernelDied
from interpreter.kernel.channels import MAIN, KernelChannels, open_channels
from interpreter.kernel.framing import Connect
from interpreter.kernel.message import Codec, Message, RawMessage

_QUEUED = 256
"""Messages that wait for one reader. Past that the stream is not read, the guest's relay stops, and so on back."""

Arrival = tuple[str, Message]
"""A channel and a message that came on it."""
OnOutput = Callable[[RawMessage], Awaitable[None]]
"""Gets every message of iopub, whoever's request it belongs to. While it waits nothing more is read."""


class Inbox:
    """The messages that belong to one request, in the order in which they came."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Arrival | Exception] = asyncio.Queue(_QUEUED)
        self._failure: Exception | None = None
        self._closed = False

    async def get(self) -> Arrival:
        """The next message. Raises what ended the connection, after all that came before."""
        if self._queue.empty() and self._failure is not None:
            raise self._failure
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def put(self, arrival: Arrival) -> None:
        """Add a message, waiting while there are too many; dropped when nobody reads any more."""
        if not self._closed:
            await self._queue.put(arrival)

    def fail(self, error: Exception) -> None:
        """Wake the reader with an error, now or when it has read the rest."""
        self._failure = error
        if not self._queue.full():
            self._queue.put_nowait(error)

    def close(self) -> None:
        """Nobody reads any more: drop what is there, so that a ``put`` that waits for room goes on."""
        self._closed = True
        while not self._queue.empty():
            self._queue.get_nowait()


class KernelConnection:
    """Sends requests to a kernel and sorts what comes back. Made by ``connect_kernel``."""

    def __init__(self, channels: KernelChannels, codec: Codec) -> None:
        self._channels = channels
        self.codec = codec
        self.on_output: OnOutput | None = None
        self._inboxes: dict[str, Inbox] = {}
        self._failure: InterpreterError | None = None
        self._ended = False

    async def send(self, channel: str, message: Message) -> None:
        """Send a message on shell, control or stdin. Raises KernelDied and what else ended the connection."""
        if self._failure is not None:
            raise self._failure
        try:
            await self._channels.send(channel, self.codec.serialise(message))
        except KernelDied as error:
            raise self._failure or error from None

    @contextmanager
    def replies(self, message: Message) -> Generator[Inbox]:
        """Where the messages that belong to ``message`` arrive; enter it before sending."""
        inbox = Inbox()
        if self._failure is not None:
            inbox.fail(self._failure)
        self._inboxes[message.header.msg_id] = inbox
        try:
            yield inbox
        finally:
            del self._inboxes[message.header.msg_id]
            inbox.close()

    async def ask(self, channel: str, message: Message, *, timeout: float) -> Message:
        """Send a request and wait for its reply on the same channel."""
        with self.replies(message) as inbox:
            async with asyncio.timeout(timeout):
                await self.send(channel, message)
                while True:
                    arrived_on, reply = await inbox.get()
                    if arrived_on == channel:
                        return reply

    def kernel_died(self, error: InterpreterError) -> None:
        """Give an error to all who wait now and all who come, until the kernel is restarted."""
        if self._failure is None:
            self._failure = error
            for inbox in self._inboxes.values():
                inbox.fail(error)

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
                await self._deliver(*await self._channels.receive())
        except InterpreterError as error:
            self.end(error)

    async def _deliver(self, channel: str, parts: list[bytes]) -> None:
        if channel == "hb":
            return
        message = self.codec.verify(parts)
        if channel == "iopub" and self.on_output is not None:
            await self.on_output(message)
        if inbox := self._inboxes.get(message.parent_id):
            await inbox.put((channel, message.whole()))


@asynccontextmanager
async def connect_kernel(
    connect: Connect, *, key: bytes, session: str, context: str = MAIN
) -> AsyncGenerator[KernelConnection]:
    """Connect to a context's kernel through the guest's relay, which gives each stream an identity of its own."""
    async with open_channels(connect, context=context) as channels:
        connection = KernelConnection(channels, Codec(key, session))
        task = asyncio.create_task(connection.receive())
        try:
            yield connection
        finally:
            task.cancel()
            await asyncio.wait({task})
            connection.end(KernelDied("the session was closed"))
