"""A kernel's own ZeroMQ sockets through the service: for clients that speak Jupyter's wire protocol themselves."""

import asyncio
import contextlib
from typing import Final, Literal

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, ConfigDict, Field
from starlette.websockets import WebSocketDisconnect

from interpreter.api.contexts import ContextName
from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems, refusal_of
from interpreter.api.service import ServiceOf
from interpreter.engine.kernel import KernelChange
from interpreter.errors import InterpreterError, NotFound
from interpreter.kernel.splicing import open_splice, splice
from kernel_guest.frames import CHANNELS

router = APIRouter(prefix="/v1/sessions/{session_id}/contexts/{context_id}", tags=["tunnels"])

# RFC 6455, section 7.4.1.
_POLICY: Final = 1008
_KERNEL_GONE: Final = 1011
_MAX_WAITING: Final = 100


class Connection(BaseModel):
    """What a connection file says of a kernel besides its addresses, which are this service's ``channels``."""

    key: str = Field(description="Signs messages; empty: they are not signed.")
    signature_scheme: Literal["hmac-sha256"] = "hmac-sha256"
    session: str = Field(description="The kernel's own Jupyter session.")


class KeyBody(BaseModel):
    """A key that the client has chosen."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"key": "0f3c…"}})

    key: str = Field(max_length=256, pattern=r"^[\x20-\x7e]*$", description="Empty: messages are not signed.")


class Change(BaseModel):
    """What happened to a kernel."""

    change: KernelChange
    status: int | None = Field(default=None, description="Exit status of a kernel that died, negative for a signal.")


@router.get("/connection", summary="How a kernel's messages are signed", responses=problems(404, 409))
async def connection(caller: CallerOf, service: ServiceOf, session_id: str, context_id: ContextName) -> Connection:
    """For clients that speak Jupyter's wire protocol. Its sockets are at `channels/{channel}`, as WebSockets.

    There each binary message, of any length, is the next piece of one ZeroMQ connection (ZMTP) to `shell`, `iopub`,
    `stdin`, `control` or `hb`. While one is open the session counts as used. Close codes: 1008 for a message that is
    not binary, 1011 when the kernel has closed the connection, as it does when it ends.

    The WebSocket `changes` tells what happens to the kernel, as text: `{"change": "died", "status": 1}`; also
    `restarting`, `restarted`, and `ended` when the machine is gone.
    """
    live = await service.sessions.running(caller.tenant, session_id)
    kernel = live.executions.kernel(context_id)
    return Connection(key=live.session.key.decode("ascii"), session=kernel.connection.codec.session)


@router.put("/connection", status_code=204, summary="Choose the key", responses=problems(404, 409, 504))
async def set_key(
    caller: CallerOf, service: ServiceOf, session_id: str, context_id: ContextName, body: KeyBody
) -> None:
    """Have the session's kernels, all of them, sign with a key of the client's. To be done before they are used."""
    live = await service.sessions.running(caller.tenant, session_id)
    live.executions.kernel(context_id)
    with live.use():
        await live.session.set_key(body.key.encode("ascii"))


@router.websocket("/channels/{channel}")
async def channels(
    websocket: WebSocket, caller: CallerOf, service: ServiceOf, session_id: str, context_id: str, channel: str
) -> None:
    """Pass bytes between a client and the socket of a kernel's channel until either closes."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            if channel not in CHANNELS:
                raise NotFound(f"a kernel has no channel {channel[:64]!r}", hint=f"There are {', '.join(CHANNELS)}")
            live = await service.sessions.running(caller.tenant, session_id)
            live.executions.kernel(context_id)
            session = stack.enter_context(live.use(lasting=True))
            kernel = await stack.enter_async_context(open_splice(session.vsock.connect, channel, context_id))
        except InterpreterError as error:
            await websocket.send_denial_response(refusal_of(error))
            return
        await websocket.accept()
        client = _WebSocketStream(websocket)
        await splice(client, kernel)
        # It may have gone just now.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            if client.broke_rules:
                await websocket.close(_POLICY, "only binary messages are passed on")
            elif not client.gone:
                await websocket.close(_KERNEL_GONE, "the kernel closed the connection")


@router.websocket("/changes")
async def changes(websocket: WebSocket, caller: CallerOf, service: ServiceOf, session_id: str, context_id: str) -> None:
    """Tell what happens to a kernel until its machine is gone."""
    try:
        live = await service.sessions.running(caller.tenant, session_id)
        kernel = live.executions.kernel(context_id)
    except InterpreterError as error:
        await websocket.send_denial_response(refusal_of(error))
        return
    waiting: asyncio.Queue[Change] = asyncio.Queue(_MAX_WAITING)
    stalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(change: KernelChange, status: int | None) -> None:
        if not waiting.full():
            waiting.put_nowait(Change(change=change, status=status))
        elif not stalled.done():
            stalled.set_result(None)

    await websocket.accept()
    with kernel.watched(note):
        leaving = asyncio.create_task(_left(websocket))
        telling = asyncio.create_task(_tell(websocket, waiting))
        try:
            # One who takes nothing is left before many changes wait for it.
            await asyncio.wait({leaving, telling, stalled}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done() and not leaving.done():
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await websocket.close(_KERNEL_GONE, "the machine is gone")
        finally:
            for task in (leaving, telling):
                task.cancel()
            await asyncio.wait({leaving, telling})


async def _tell(websocket: WebSocket, waiting: asyncio.Queue[Change]) -> None:
    change = None
    while change is None or change.change != "ended":
        change = await waiting.get()
        await websocket.send_text(change.model_dump_json(exclude_none=True))


async def _left(websocket: WebSocket) -> None:
    while (await websocket.receive())["type"] != "websocket.disconnect":
        continue


class _WebSocketStream:
    """A WebSocket whose binary messages are pieces of one stream of bytes."""

    def __init__(self, websocket: WebSocket) -> None:
        self.gone = False
        self.broke_rules = False
        self._websocket = websocket

    async def read(self) -> bytes:
        """See `ByteStream`."""
        while True:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                self.gone = True
                return b""
            if event.get("text") is not None:
                self.broke_rules = True
                return b""
            # An empty message is none of the stream's bytes, and not its end.
            if data := event.get("bytes"):
                return data

    async def write(self, data: bytes) -> None:
        """See `ByteStream`."""
        try:
            await self._websocket.send_bytes(data)
        except WebSocketDisconnect:
            self.gone = True
            raise ConnectionResetError from None
