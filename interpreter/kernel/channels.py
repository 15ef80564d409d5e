"""A client's channels to a kernel: messages as parts, each way, over one stream of the guest's relay."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from interpreter.errors import GuestMisbehaved, KernelDied, SessionEnded, TooLarge
from interpreter.kernel.framing import Connect, FrameStream, open_service
from interpreter.kernel.memory import Room
from kernel_guest.frames import CHANNELS, MAX_MESSAGE, FrameError, Kind

MAIN: Final = "main"
"""The context that every session has from the start."""


OnLeftOut = Callable[[str, bytes, int], Awaitable[None]]
"""Gets channel, parent header and size of a message that was too long to be passed on."""


class KernelChannels:
    """The relay gives each of these an identity of its own: what is asked here is answered here, input included."""

    def __init__(self, stream: FrameStream) -> None:
        self.on_left_out: OnLeftOut | None = None
        self.dead = stream.opened.get("dead") is True
        """Whether the kernel had died when they were opened, and none was started since."""
        self._stream = stream

    def share(self, room: Room) -> None:
        """Count what arrives in a room that is shared with others."""
        self._stream.share(room)

    async def send(self, channel: str, parts: list[bytes]) -> None:
        """Send a message's parts on shell, control or stdin. Raises KernelDied, TooLarge."""
        try:
            await self._stream.send(Kind.MESSAGE, {"channel": channel, "parts": parts})
        except FrameError as error:
            raise TooLarge(f"the message cannot be sent: {error}") from None
        except ConnectionError as error:
            raise SessionEnded("the machine that the kernel runs in ended") from error

    async def receive(self) -> tuple[str, list[bytes]]:
        """The next message's channel and parts. Raises KernelDied at the end of the stream, GuestMisbehaved."""
        while True:
            try:
                frame = await self._stream.receive()
            except OSError as error:
                raise SessionEnded("the machine that the kernel runs in ended") from error
            if frame is None:
                raise KernelDied("the kernel's relay ended")
            if frame.kind is not Kind.MESSAGE:
                raise GuestMisbehaved(f"the guest sent {frame.kind} among kernel messages")
            match frame.body:
                case {"channel": str(channel), "left_out": int(size), "parent": bytes(parent)} if channel in CHANNELS:
                    if self.on_left_out is not None:
                        await self.on_left_out(channel, parent, size)
                case body:
                    return _unpack(body)


@asynccontextmanager
async def open_channels(
    connect: Connect, *, context: str = MAIN, iopub: bool = True, dead: bool = False
) -> AsyncGenerator[KernelChannels]:
    """Open channels to a context's kernel; without ``iopub`` all but its output.

    With ``dead`` also to one that has died: they lead to the next one. Raises GuestRefused, VsockError.
    """
    async with open_service(connect, "kernel", limit=MAX_MESSAGE, context=context, iopub=iopub, dead=dead) as stream:
        yield KernelChannels(stream)


def _unpack(body: dict[str, Any]) -> tuple[str, list[bytes]]:
    match body:
        case {"channel": str(channel), "parts": [*parts]} if channel in CHANNELS:
            if all(isinstance(part, bytes) for part in parts):
                return channel, parts
        case _:
            pass
    raise GuestMisbehaved("the guest sent a kernel message of a wrong form")
