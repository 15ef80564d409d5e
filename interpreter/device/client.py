"""A machine's vsock device as the service has it: streams to the guest, streams from it, and its end.

Everything that comes from the device's process is as little trusted as what comes from the guest. It never gets a
descriptor that the service uses: of each pair of sockets one end is passed, the other one's flags are out of reach.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Self

from interpreter.deadline import deadline
from interpreter.device.control import Control
from interpreter.device.stream import StreamTransport
from interpreter.device.wire import Kind, Message, failure_of
from interpreter.errors import InterpreterError, VsockConnectError, VsockError
from interpreter.vsock.packet import HOST_CID

CONNECT_TIMEOUT: Final = 10.0
BACKLOG: Final = 16
READ_LIMIT: Final = 128 * 1024
"""The StreamReader's limit: it holds up to twice as much before the guest gets no more credit."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listener:
    """The streams that the guest opens to one port, in order. Made by ``DeviceClient.listen``."""

    def __init__(self, device: "DeviceClient", port: int) -> None:
        self._device = device
        self._waiting: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter, int] | InterpreterError] = (
            asyncio.Queue()
        )
        self.port = port
        self.posted: set[int] = set()
        """Numbers of the streams that the guest may still open."""

    async def accept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """The next stream, and the guest's port at its other end. Raises the device's failure once it is closed."""
        item = await self._waiting.get()
        if isinstance(item, InterpreterError):
            self._waiting.put_nowait(item)
            raise item.anew()
        self._device.post(self)
        return item

    def put(self, stream: Stream, port: int) -> None:
        """For the device: a stream was opened."""
        self._waiting.put_nowait((*stream, port))

    def fail(self, error: InterpreterError) -> None:
        """For the device: no stream will come any more."""
        self._waiting.put_nowait(error)

    def drop_waiting(self) -> None:
        """For the device: reset what nobody accepted."""
        while not self._waiting.empty():
            item = self._waiting.get_nowait()
            if not isinstance(item, InterpreterError):
                item[1].transport.abort()


class _Opening:
    """A stream that is not there yet: its reader and writer, and who is told, a listener or a call to ``connect``."""

    def __init__(self, device: "DeviceClient", number: int, control: Control, owner: "Listener | asyncio.Future[int]"):
        loop = asyncio.get_running_loop()
        self.ours, self.theirs = socket.socketpair()
        self.owner = owner
        self.reader = asyncio.StreamReader(limit=READ_LIMIT, loop=loop)
        protocol = asyncio.StreamReaderProtocol(self.reader, loop=loop)
        self.transport = StreamTransport(control, number, self.ours, protocol, lambda: device.forget(number))
        self.writer = asyncio.StreamWriter(self.transport, protocol, self.reader, loop)


class DeviceClient:
    """One device, as an async context manager; leaving it resets all streams. ``DeviceParent.start`` makes it.

    When the device ends, for whatever cause, all streams are reset, ``failure`` is set, and everything that waits
    raises it.
    """

    def __init__(self, pid: int, control: socket.socket, guest_cid: int) -> None:
        self.pid = pid
        """The process id of the device's process, as the service sees it."""
        self.failure: InterpreterError | None = None
        self._guest_cid = guest_cid
        self._control_socket = control
        self._streams: dict[int, StreamTransport] = {}
        self._opening: dict[int, _Opening] = {}
        self._listeners: dict[int, Listener] = {}
        self._closed = asyncio.Event()
        self._numbers = 0
        self._said = 0

    async def __aenter__(self) -> Self:
        self._control = Control(self._control_socket, self._on_message, self._end, takes_descriptors=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(VsockError("the vsock device was closed"))

    async def wait_closed(self) -> None:
        """Wait until the device has ended, for whatever cause; ``failure`` tells it."""
        await self._closed.wait()

    async def connect(self, port: int, timeout: float = CONNECT_TIMEOUT) -> Stream:
        """Open a stream to a port in the guest.

        Raises VsockConnectError when the guest refuses, or does not answer within ``timeout`` seconds.
        """
        if self.failure is not None:
            raise VsockConnectError(f"cannot connect to the guest's port {port}: {self.failure}")
        answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        number = self._open(Kind.CONNECT, port, answered)
        opening = self._opening[number]
        try:
            async with deadline(timeout):
                await answered
        except TimeoutError:
            opening.transport.abort()
            raise VsockConnectError(f"the guest's port {port} did not answer within {timeout:g} s") from None
        except ConnectionResetError as error:
            raise VsockConnectError(f"cannot connect to the guest's port {port}: {error}") from None
        except asyncio.CancelledError:
            opening.transport.abort()
            raise
        finally:
            self._opening.pop(number, None)
        return opening.reader, opening.writer

    @asynccontextmanager
    async def listen(self, port: int, backlog: int = BACKLOG) -> AsyncGenerator[Listener]:
        """Take the guest's connections to a port of the host while the block runs.

        The guest's requests are refused while ``backlog`` streams wait. Raises VsockError when the port is taken.
        """
        if port in self._listeners:
            raise VsockError(f"port {port} is listened on already")
        listener = self._listeners[port] = Listener(self, port)
        for _ in range(backlog):
            self.post(listener)
        if self.failure is not None:
            listener.fail(self.failure)
        try:
            yield listener
        finally:
            del self._listeners[port]
            for number in listener.posted:
                self._opening.pop(number).transport.abort()
            listener.posted.clear()
            listener.drop_waiting()

    def post(self, listener: Listener) -> None:
        """For listeners: let the guest open one stream more."""
        if self.failure is None and listener.port in self._listeners:
            listener.posted.add(self._open(Kind.ACCEPT, listener.port, listener))

    def forget(self, number: int) -> None:
        """For streams: it is closed, and nothing that comes is for it."""
        self._streams.pop(number, None)

    def _open(self, kind: Kind, port: int, owner: "Listener | asyncio.Future[int]") -> int:
        self._numbers += 1
        number = self._numbers
        opening = self._opening[number] = _Opening(self, number, self._control, owner)
        self._streams[number] = opening.transport
        self._control.send(Message(kind, number, port), opening.theirs)
        return number

    def _on_message(self, message: Message, _: socket.socket | None) -> None:
        # Of each stream there is to say that it is there, or not, and how each direction ended.
        self._said += 1
        if self._said > 3 * self._numbers + 1:
            raise VsockError("the vsock device says more than there is to say")
        match message.kind:
            case Kind.ESTABLISHED:
                self._established(message)
            case Kind.FAILED:
                if (opening := self._opening.pop(message.stream, None)) is not None:
                    self._refuse(opening, message.text)
            case Kind.SHUT | Kind.CLOSED | Kind.RESET:
                if (stream := self._streams.get(message.stream)) is not None:
                    stream.peer_ended(message)
            case Kind.FAILURE:
                self._end(failure_of(message))
            case _:
                raise VsockError(f"a vsock device does not say {message.kind.name}")

    def _established(self, message: Message) -> None:
        opening = self._opening.pop(message.stream, None)
        if opening is None:
            # Given up meanwhile, which the device has been told.
            return
        owner = opening.owner
        guest, host = (message.port, owner.port) if isinstance(owner, Listener) else (0, message.port)
        opening.transport.open((self._guest_cid, guest), (HOST_CID, host))
        if isinstance(owner, Listener):
            owner.posted.discard(message.stream)
            owner.put((opening.reader, opening.writer), message.port)
        elif not owner.done():
            owner.set_result(message.port)

    def _refuse(self, opening: _Opening, cause: str) -> None:
        opening.transport.abort()
        if isinstance(opening.owner, Listener):
            opening.owner.posted.discard(opening.transport.number)
        elif not opening.owner.done():
            opening.owner.set_exception(ConnectionResetError(cause))

    def _end(self, failure: InterpreterError) -> None:
        if self.failure is not None:
            return
        self.failure = failure
        self._control.close()
        for opening in list(self._opening.values()):
            self._refuse(opening, failure.message)
        self._opening.clear()
        for stream in list(self._streams.values()):
            stream.peer_ended(Message(Kind.RESET, stream.number, text=failure.message))
        for listener in self._listeners.values():
            listener.fail(failure)
        self._closed.set()
