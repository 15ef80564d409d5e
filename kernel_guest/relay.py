"""The relay: a stream of frames on one side, the kernel's five ZeroMQ sockets on the other.

Each stream is one client of the kernel, with sockets and an identity of its own, so replies and input requests
come back to who asked. Parts pass byte for byte. When the stream takes no more, the sockets are not read; the kernel's
iopub socket then waits (it never drops), and nothing is lost.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import zmq
from zmq.eventloop.zmqstream import ZMQStream

from kernel_guest.frames import MAX_MESSAGE, Frame, FrameDecoder, FrameError, Kind, encode
from kernel_guest.kernel.app import IOPUB_MESSAGES, PORTS

WELCOME_SECONDS = 30.0
"""How long a kernel may take to let a client in."""

_READ = 256 * 1024
_HIGH_WATER = 1024 * 1024
_DELIMITER = b"<IDS|MSG>"
_MAX_PARENT = 64 * 1024
_PATIENCE_SECONDS = 1.0
"""How long a welcome is waited for before the subscription is made once more; twice as long each time."""
_SOCKET_TYPES = {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER, "hb": zmq.DEALER, "iopub": zmq.SUB}


def channel_path(folder: Path, channel: str) -> str:
    """The unix socket of a kernel's channel."""
    return f"{folder / 'kernel'}-{PORTS[f'{channel}_port']}"


class Relay:
    """Passes messages between one stream and the kernel whose sockets lie in ``folder``.

    Without ``iopub`` only requests and what answers them: the host has the kernel's output from another stream.
    """

    def __init__(self, context: zmq.Context[Any], folder: Path, *, iopub: bool = True) -> None:
        self._context = context
        self._folder = folder
        self._channels = [channel for channel in _SOCKET_TYPES if iopub or channel != "iopub"]
        self._identity = os.urandom(16)
        self._streams: dict[str, ZMQStream] = {}
        self._welcomed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._resuming: asyncio.Task[None] | None = None

    async def run(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        when_ready: Callable[[], None],
        *,
        alive: bool = True,
    ) -> None:
        """Relay until the stream ends. ``when_ready`` is called when no output can be missed any more.

        A kernel that is not ``alive`` is connected to when it is started.
        """
        try:
            if alive:
                if not self._streams:
                    self.connect()
                await self.welcomed()
            self._writer = writer
            when_ready()
            self._listen()
            decoder = FrameDecoder()
            while data := await reader.read(_READ):
                for frame in decoder.feed(data):
                    self._to_kernel(frame)
        finally:
            self.disconnect()
            # A restart may wait for it at this moment, and for a welcome that does not come any more.
            self._welcomed.set()
            if self._resuming is not None:
                self._resuming.cancel()

    def connect(self) -> None:
        """Open sockets to the kernel that is there now, in place of those to an earlier one."""
        self.disconnect()
        self._welcomed.clear()
        for channel in self._channels:
            kind = _SOCKET_TYPES[channel]
            socket = self._context.socket(kind)
            socket.linger = 0
            # Replies, requests and input are few and must not be lost. Output is much: what waits here is counted,
            # and the kernel's socket waits in turn.
            socket.set_hwm(IOPUB_MESSAGES if channel == "iopub" else 0)
            if kind == zmq.SUB:
                socket.subscribe(b"")
            else:
                socket.setsockopt(zmq.IDENTITY, self._identity)
            socket.connect(f"ipc://{channel_path(self._folder, channel)}")
            self._streams[channel] = ZMQStream(socket)
        # Until there is a stream only the welcome is waited for; all else stays in the sockets.
        if iopub := self._streams.get("iopub"):
            iopub.on_recv(self._take_welcome)
        else:
            self._welcomed.set()

    def disconnect(self) -> None:
        """Close the sockets: the kernel is gone, or nobody wants it any more."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()

    async def welcomed(self) -> None:
        """Wait until the kernel has taken the subscription to iopub; what it publishes then arrives.

        Raises TimeoutError.
        """
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                await self._insist_on_welcome()
        except TimeoutError:
            raise TimeoutError(f"the kernel did not let a client in within {WELCOME_SECONDS:g} s") from None
        # A stream that takes no more is still waited for; `_resume` listens then.
        if self._writer is not None and self._resuming is None:
            self._listen()

    async def _insist_on_welcome(self) -> None:
        patience = _PATIENCE_SECONDS
        while not await self._welcomed_within(patience):
            # The welcome may have been lost, but the kernel sends one for each subscription.
            if iopub := self._streams.get("iopub"):
                iopub.setsockopt(zmq.UNSUBSCRIBE, b"")
                iopub.setsockopt(zmq.SUBSCRIBE, b"")
            patience *= 2

    async def _welcomed_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._welcomed.wait()
        return self._welcomed.is_set()

    def _take_welcome(self, _: Sequence[bytes]) -> None:
        # Most often the kernel's iopub_welcome; any other message that comes proves the subscription as well. Nobody
        # misses it: the stream's OK is sent after it.
        self._welcomed.set()
        self._streams["iopub"].stop_on_recv()

    def _listen(self) -> None:
        for channel, stream in self._streams.items():
            stream.on_recv(self._receiver(channel))

    def _receiver(self, channel: str) -> Callable[[Sequence[bytes]], None]:
        writer = self._writer
        if writer is None:
            raise RuntimeError("a relay listens only for a stream")

        def receive(parts: Sequence[bytes]) -> None:
            try:
                frame = encode(Frame(Kind.MESSAGE, {"channel": channel, "parts": list(parts)}), MAX_MESSAGE)
            except FrameError:
                # Longer than the host takes: the one message that cannot pass is left out, the rest goes on.
                frame = encode(Frame(Kind.MESSAGE, {"channel": channel, **_left_out(parts)}))
            writer.write(frame)
            transport: Any = writer.transport
            if transport.get_write_buffer_size() > _HIGH_WATER and self._resuming is None:
                self._pause()

        return receive

    def _pause(self) -> None:
        for stream in self._streams.values():
            stream.stop_on_recv()
        self._resuming = asyncio.create_task(self._resume())

    async def _resume(self) -> None:
        with contextlib.suppress(ConnectionError):
            if self._writer is not None:
                await self._writer.drain()
            self._resuming = None
            # Else a new kernel's welcome is still due, which only `_take_welcome` may take.
            if self._welcomed.is_set():
                self._listen()

    def _to_kernel(self, frame: Frame) -> None:
        match frame:
            case Frame(
                Kind.MESSAGE, {"channel": "shell" | "control" | "stdin" | "hb" as channel, "parts": [_, *_] as parts}
            ):
                pass
            case _:
                raise FrameError(f"{frame.kind} is not a message for the kernel")
        if not all(isinstance(part, bytes) for part in cast("list[object]", parts)):
            raise FrameError("a message's parts are bytes")
        # With no kernel there (it died, and none was started since) the message has nowhere to go.
        if stream := self._streams.get(channel):
            stream.send_multipart(cast("list[bytes]", parts))


def _left_out(parts: Sequence[bytes]) -> dict[str, Any]:
    """What is told of a message that is too long: its size, and which request it belongs to."""
    signed = list(parts)[list(parts).index(_DELIMITER) + 1 :] if _DELIMITER in parts else []
    parent = signed[2] if len(signed) > 2 and len(signed[2]) <= _MAX_PARENT else b"{}"
    return {"left_out": sum(map(len, parts)), "parent": parent}


async def splice(path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes both ways between a stream and the unix socket at ``path`` until either side has ended."""
    kernel_reader, kernel_writer = await asyncio.open_unix_connection(path)

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(_READ):
                target.write(data)
                await target.drain()

    # As on the host: ZeroMQ closes a connection as a whole; a reset is an end as well.
    copies = {asyncio.create_task(copy(reader, kernel_writer)), asyncio.create_task(copy(kernel_reader, writer))}
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in copies:
            one.cancel()
        await asyncio.wait(copies)
        kernel_writer.close()
