"""Kernels whose machines run at a service: their sockets come through WebSockets."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, Literal

import structlog
from pydantic import BaseModel, ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from interpreter.client import AsyncClient, AsyncSession
from interpreter.client.aio import TIMEOUT
from interpreter.client.failures import error_from_answer
from interpreter.client.transport import Call, Transport, session_path
from interpreter.deadline import deadline
from interpreter.engine.kernel import KernelChange, OnChange
from interpreter.errors import Conflict, GuestUnresponsive, InterpreterError, NotFound, ServiceUnreachable
from interpreter.jupyter.guests import Wanted
from interpreter.kernel.channels import MAIN
from interpreter.kernel.splicing import ByteStream

log = structlog.get_logger(__name__)

_AWAY_SECONDS: Final = 60.0
"""Seconds that a service may be away, to be started anew for one, before its kernels are taken for lost."""
_PAUSE: Final = 1.0
_PING_SECONDS: Final = 20.0
_CLOSE_SECONDS: Final = 2.0
_TOLD_SECONDS: Final = 5.0


class RemoteGuests:
    """Starts sessions at the service at ``url``, with the key of INTERPRETER_API_KEY. Raises ConfigurationError."""

    def __init__(self, url: str) -> None:
        self._client = AsyncClient(url)
        self._transport = Transport(url, None, timeout=TIMEOUT)

    @asynccontextmanager
    async def kernel(self, wanted: Wanted, on_change: OnChange) -> AsyncGenerator["RemoteKernel"]:
        """See `Guests`."""
        session = await self._client.create_session(
            wanted.template, name="jupyter", timeout_mode="idle", env=wanted.environment
        )
        async with session:
            kernel = RemoteKernel(self._transport, session, wanted.key.decode("ascii"), on_change)
            watching = asyncio.create_task(kernel.watch())
            watching.add_done_callback(kernel.watch_ended)
            try:
                await kernel.begun
                yield kernel
            finally:
                watching.cancel()
                await asyncio.wait({watching})

    async def close(self) -> None:
        """See `Guests`."""
        await self._client.close()
        await self._transport.close()


class _Connection(BaseModel):
    key: str


class _Change(BaseModel):
    change: Literal["restarting", "restarted", "died", "ended"]
    status: int | None = None


class RemoteKernel:
    """The main kernel of a service's session."""

    def __init__(self, transport: Transport, session: AsyncSession, key: str, on_change: OnChange) -> None:
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when it is known from then on what happens to the kernel. Raises InterpreterError."""
        self._transport = transport
        self._session = session
        self._key = key
        self._on_change = on_change
        self._watched = asyncio.Event()
        self._replacing: asyncio.Event | None = None

    @asynccontextmanager
    async def stream(self, channel: str) -> AsyncGenerator[ByteStream]:
        """See `GuestKernel`."""
        # A service that was started anew gives the kernel a key of its own at first.
        await self._watched.wait()
        # Without pings of ours: what the client does not take waits, and a pong would wait behind it.
        async with self._open("channels", channel, ping_interval=None) as websocket:
            yield _Tunnel(websocket)

    async def interrupt(self) -> None:
        """See `GuestKernel`."""
        await self._session.interrupt()

    async def restart(self) -> None:
        """See `GuestKernel`."""
        self._replacing = asyncio.Event()
        try:
            await self._session.restart()
            # What the old kernel did is still told until then. By a connection that has just broken nothing is.
            with contextlib.suppress(TimeoutError):
                async with deadline(_TOLD_SECONDS):
                    await self._replacing.wait()
        finally:
            self._replacing = None

    async def watch(self) -> None:
        """Tell what happens to the kernel until the machine, or the service, is gone for good."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _AWAY_SECONDS
        while True:
            try:
                # Also after a break: the service may have been started anew, with a new key for the kernel.
                await self._choose_key()
                await self._follow()
                deadline = loop.time() + _AWAY_SECONDS
            except (NotFound, Conflict):
                break
            except GuestUnresponsive as error:
                # The service is there; its kernel may be at something that lets nothing else in.
                deadline = loop.time() + _AWAY_SECONDS
                log.warning("the kernel does not answer its service", error=str(error))
            except InterpreterError as error:
                if not self.begun.done():
                    self.begun.set_exception(error)
                    return
                log.warning("the kernel's service does not answer", error=str(error))
            except _Ended:
                break
            if loop.time() > deadline:
                break
            await asyncio.sleep(_PAUSE)
        self._end(Conflict("the session ended while its kernel was connected to"))

    async def _choose_key(self) -> None:
        path = session_path(self._session.id, "contexts", MAIN, "connection")
        # Only when it must be: a kernel that is busy may not be able to change it for a while.
        if (await self._transport.get(Call("GET", path), _Connection)).key != self._key:
            await self._transport.send(Call("PUT", path, body={"key": self._key}))

    def watch_ended(self, watching: asyncio.Task[None]) -> None:
        """`watch` is over; also by a fault of ours nobody must go on waiting for it."""
        if watching.cancelled() or (error := watching.exception()) is None:
            return
        log.error("the kernel's service cannot be followed any more", exc_info=error)
        self._end(ServiceUnreachable(f"the kernel cannot be followed: {error}"))

    def _end(self, error: InterpreterError) -> None:
        if not self.begun.done():
            self.begun.set_exception(error)
        self._on_change("ended", None)

    async def _follow(self) -> None:
        async with self._open("changes") as websocket:
            self._watched.set()
            if not self.begun.done():
                self.begun.set_result(None)
            try:
                async for text in websocket:
                    change = _Change.model_validate_json(text)
                    self._changed(change.change, change.status)
            except (ConnectionClosed, ValidationError) as error:
                log.warning("the connection to the kernel's service broke", error=str(error))
            finally:
                self._watched.clear()

    def _changed(self, change: KernelChange, status: int | None) -> None:
        if change == "ended":
            raise _Ended
        if self._replacing is None or self._replacing.is_set():
            self._on_change(change, status)
        elif change == "restarted":
            # What was told before that was of the old kernel.
            self._replacing.set()

    @asynccontextmanager
    async def _open(self, *parts: str, ping_interval: float | None = _PING_SECONDS) -> AsyncGenerator[ClientConnection]:
        url = self._transport.url
        scheme = "wss" if url.scheme == "https" else "ws"
        path = session_path(self._session.id, "contexts", MAIN, *parts)
        try:
            websocket = await connect(
                f"{scheme}://{url.netloc.decode('ascii')}{url.path.rstrip('/')}{path}",
                additional_headers=self._transport.authorization,
                compression=None,
                max_size=None,
                close_timeout=_CLOSE_SECONDS,
                ping_interval=ping_interval,
                # As for requests: a service on this machine is never behind a proxy.
                proxy=None if self._transport.is_local else True,
            )
        except InvalidStatus as error:
            raise error_from_answer(error.response.status_code, bytes(error.response.body or b"")) from None
        # ImportError: of a proxy for which a package is missing.
        except (OSError, TimeoutError, WebSocketException, ImportError) as error:
            raise ServiceUnreachable(f"no WebSocket can be opened at {url}: {error}") from error
        try:
            yield websocket
        finally:
            await websocket.close()


class _Ended(Exception):
    """The machine is gone."""


class _Tunnel:
    """A WebSocket whose binary messages are pieces of one stream of bytes."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    async def read(self) -> bytes:
        """See `ByteStream`."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                if data := await self._websocket.recv(decode=False):
                    return data
        return b""

    async def write(self, data: bytes) -> None:
        """See `ByteStream`."""
        try:
            await self._websocket.send(data)
        except ConnectionClosed as error:
            raise ConnectionResetError(str(error)) from None
