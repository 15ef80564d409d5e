"""A client's channels to a kernel: messages as parts, each way, over one stream of the guest's relay."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from interpreter.errors import GuestMisbehaved, KernelDied, TooLarge
from interpreter.kernel.framing import Connect, FrameStream, open_service
from kernel_guest.frames import CHANNELS, FrameError, Kind

MAIN: Final = "main"
"""The context that every session has from the start."""


class KernelChannels:
    """The relay gives each of these an identity of its own: what is asked here is answered here, input included."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream

    async def send(self, channel: str, parts: list[bytes]) -> None:
        """Send a message's parts on shell, control or stdin. Raises KernelDied, TooLarge."""
        try:
            await self._stream.send(Kind.MESSAGE, {"channel": channel, "parts": parts})
        except FrameError as error:
            raise TooLarge(f"the message cannot be sent: {error}") from None
        except ConnectionError as error:
            raise KernelDied("the machine that the kernel runs in ended") from error

    async def receive(self) -> tuple[str, list[bytes]]:
        """The next message's channel and parts. Raises KernelDied at the end of the stream, GuestMisbehaved."""
        try:
            frame = await self._stream.receive()
        except OSError as error:
            raise KernelDied("the machine that the kernel runs in ended") from error
        if frame is None:
            raise KernelDied("the kernel's relay ended")
        if frame.kind is not Kind.MESSAGE:
            raise GuestMisbehaved(f"the guest sent {frame.kind} among kernel messages")
        return _unpack(frame.body)


@asynccontextmanager
async def open_channels(connect: Connect, *, context: str = MAIN, iopub: bool = True) -> AsyncGenerator[KernelChannels]:
    """Open channels to a context's kernel; without ``iopub`` all but its output. Raises GuestRefused, VsockError."""
    async with open_service(connect, "kernel", context=context, iopub=iopub) as stream:
        yield KernelChannels(stream)


def _unpack(body: dict[str, Any]) -> tuple[str, list[bytes]]:
    match body:
        case {"channel": str(channel), "parts": [*parts]} if channel in CHANNELS:
            if all(isinstance(part, bytes) for part in parts):
                return channel, parts
        case _:
            pass
    raise GuestMisbehaved("the guest sent a kernel message of a wrong form")
