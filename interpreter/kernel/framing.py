"""Frames over an asyncio stream: the I/O around ``kernel_guest.frames``."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from interpreter.errors import GuestMisbehaved, GuestRefused, InterpreterError, MachineDied, VsockConnectError
from interpreter.kernel.memory import Room
from kernel_guest.frames import AGENT_PORT, MAX_CONTROL, Frame, FrameError, Kind, decode, encode

_TURN_FRAMES: Final = 16
_TURN_BYTES: Final = 1024 * 1024
"""So much is taken from one stream, however much is there, before others get their turn."""

_HINTS: Final = {
    "kernel_silent": "Restart the kernel, or try again when the machine has less to do; files are kept",
    "no_kernel": "Restart the kernel; files are kept",
}
"""What helps, by the agent's word for why it refused."""

Connect = Callable[[int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
"""Opens a stream to a port in the guest."""


class FrameStream:
    """A stream of frames. Every byte that comes from it is the guest's, so what is no frame closes it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limit: int = MAX_CONTROL) -> None:
        self.reader = reader
        self.writer = writer
        self.opened: dict[str, Any] = {}
        """What the guest answered when the service was opened."""
        self._limit = limit
        self._room: Room | None = None
        self._held = 0
        self._frames = 0
        self._bytes = 0

    def share(self, room: Room) -> None:
        """Count each frame in a room that is shared with others, from its first byte until the next is asked for."""
        self.close()
        self._room = room

    def close(self) -> None:
        """Nothing more is read from it."""
        self._let_go()
        self._room = None

    async def send(self, kind: Kind, body: dict[str, Any]) -> None:
        """Send one frame, waiting while the guest takes no more."""
        self.writer.write(encode(Frame(kind, body)))
        await self.writer.drain()

    async def receive(self) -> Frame | None:
        """The next frame; None at the end of the stream. Raises GuestMisbehaved, ConnectionError."""
        await self._take_turns()
        self._let_go()
        try:
            length = int.from_bytes(await self.reader.readexactly(4), "big")
            if length > self._limit:
                raise GuestMisbehaved(f"the guest announced a frame of {length} bytes, over {self._limit}")
            await self._hold(length)
            return decode(await self.reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            if not error.partial and error.expected == 4:
                return None
            raise GuestMisbehaved("the guest ended a stream in the middle of a frame") from None
        except (FrameError, RecursionError) as error:
            raise GuestMisbehaved(f"the guest sent no frame: {str(error)[:200]}") from None

    async def _take_turns(self) -> None:
        # Reading what is in the buffer already never waits, and so would never let others run.
        self._frames += 1
        if self._frames >= _TURN_FRAMES or self._bytes >= _TURN_BYTES:
            self._frames = self._bytes = 0
            await asyncio.sleep(0)

    async def _hold(self, length: int) -> None:
        self._bytes += length
        if self._room is not None:
            await self._room.wait_for(length)
            self._held = length

    def _let_go(self) -> None:
        if self._room is not None and self._held:
            self._room.give_back(self._held)
        self._held = 0

    async def answer(self) -> dict[str, Any]:
        """The guest's answer to what was asked: the body of OK. Raises GuestRefused with what ERROR said."""
        frame = await self.receive()
        if frame is None:
            raise VsockConnectError("the guest closed the stream without an answer")
        if frame.kind is Kind.OK:
            return frame.body
        raise error_of(frame)


def error_of(frame: Frame) -> InterpreterError:
    """The error that a frame carries."""
    if frame.kind is not Kind.ERROR:
        return GuestMisbehaved(f"the guest sent {frame.kind} where an answer belongs")
    code, message = _text(frame, "code", "unknown")[:80], _text(frame, "message", "")[:1000]
    return GuestRefused(message or code, guest_code=code, hint=_HINTS.get(code))


def _text(frame: Frame, key: str, default: str) -> str:
    value = frame.body.get(key, default)
    return value if isinstance(value, str) else default


@asynccontextmanager
async def open_service(
    connect: Connect, service: str, *, limit: int = MAX_CONTROL, **arguments: object
) -> AsyncGenerator[FrameStream]:
    """A stream to a service of the guest's agent, opened and closed, whose frames have ``limit`` bytes at most.

    Raises VsockError, GuestRefused, MachineDied.
    """
    reader, writer = await connect(AGENT_PORT)
    stream = FrameStream(reader, writer, limit=limit)
    try:
        try:
            await stream.send(Kind.OPEN, {"service": service, **arguments})
            stream.opened = await stream.answer()
        except OSError as error:
            raise MachineDied("the machine ended while a stream to it was opened") from error
        yield stream
    except BaseException:
        # Not a clean end: the guest must not take what it has for the whole.
        writer.transport.abort()
        raise
    finally:
        stream.close()
        writer.close()
