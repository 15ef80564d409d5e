"""A kernel's channels over a WebSocket, in both forms that Jupyter's front ends speak."""

import asyncio
import contextlib
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Query, WebSocket
from starlette.websockets import WebSocketDisconnect

from interpreter.api.http.caller import CallerOf
from interpreter.api.jupyter.models import KernelId, kernel_of
from interpreter.api.problems import refusal_of
from interpreter.api.service import ServiceOf
from interpreter.deadline import deadline
from interpreter.errors import GuestMisbehaved, InterpreterError, InvalidRequest, KernelDied, TooLarge
from interpreter.gateway.clients import KernelClient, KernelClients
from interpreter.kernel.message import RawMessage
from interpreter.kernel.websocket import V1, Subprotocol, pack, packing, unpacking
from interpreter.rate import Rate
from interpreter.turns import in_turns

router = APIRouter(tags=["jupyter"])
log = structlog.get_logger(__name__)

# RFC 6455, section 7.4.1.
_GOING_AWAY: Final = 1001
_INVALID_DATA: Final = 1007
_POLICY: Final = 1008
_TOO_LONG: Final = 1009
_MAX_REASON: Final = 123
_LAST_MESSAGES_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 5.0
"""A client that takes nothing does not take this either; then its connection is left to time out."""

SessionName = Annotated[
    str | None, Query(alias="session_id", max_length=200, description="Whose messages are kept while it is away.")
]


@router.websocket("/api/kernels/{kernel_id}/channels")
async def channels(
    websocket: WebSocket, caller: CallerOf, service: ServiceOf, kernel_id: KernelId, session: SessionName = None
) -> None:
    """Relay between a client and a kernel until either is gone.

    The close code and reason tell why: 1001 the kernel is gone (culled, shut down, died), 1007 a frame that is no
    message, 1008 the same client connected anew or takes nothing, 1009 a message that is too long.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            live = await kernel_of(service, caller, kernel_id)
            client, lost = await stack.enter_async_context(live.clients.join(session or None))
        except InterpreterError as error:
            await websocket.send_denial_response(refusal_of(error))
            return
        protocol: Subprotocol = V1 if V1 in websocket.scope["subprotocols"] else ""
        await websocket.accept(protocol or None)
        buffers = service.settings.gateway_buffers or not _breaks_on_buffers(websocket, protocol)
        relay = _Relay(websocket, live.clients, client, protocol, buffers=buffers)
        async with client.turn:
            code, reason = await relay.run(lost)
        # It may be closed already, by the client.
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
            async with deadline(_CLOSE_SECONDS):
                await websocket.close(code, reason.encode()[:_MAX_REASON].decode(errors="ignore"))


class _Relay:
    """One connection of a client."""

    def __init__(
        self,
        websocket: WebSocket,
        clients: KernelClients,
        client: KernelClient,
        protocol: Subprotocol,
        *,
        buffers: bool,
    ) -> None:
        self._websocket = websocket
        self._clients = clients
        self._client = client
        self._protocol: Subprotocol = protocol
        self._buffers = buffers
        self._log_rate = Rate(1 / 60, 10)

    async def run(self, lost: asyncio.Future[str]) -> tuple[int, str]:
        """Relay until the client or the kernel is gone; returns the code and reason to close with."""
        receiving = asyncio.create_task(self._from_client())
        sending = asyncio.create_task(self._to_client())
        try:
            await asyncio.wait({receiving, sending, lost}, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                return receiving.result()
            if self._client.is_over:
                # What the kernel said last, why it is gone for one, still goes out.
                await asyncio.wait({sending}, timeout=_LAST_MESSAGES_SECONDS)
                return _GOING_AWAY, lost.result() if lost.done() else "the kernel is gone"
            return (_POLICY, lost.result()) if lost.done() else (_GOING_AWAY, "the client is gone")
        finally:
            await _end(receiving, sending)

    async def _from_client(self) -> tuple[int, str]:
        while True:
            event = await self._websocket.receive()
            if event["type"] == "websocket.disconnect":
                return _GOING_AWAY, "the client is gone"
            text = event.get("text")
            try:
                payload: str | bytes = event["bytes"] if text is None else text
                message = await in_turns(unpacking(self._protocol, payload))
                await self._clients.send(self._client, message)
            except InvalidRequest as error:
                return _INVALID_DATA, error.message
            except TooLarge as error:
                return _TOO_LONG, error.message
            except KernelDied as error:
                return _GOING_AWAY, error.message

    async def _to_client(self) -> None:
        while True:
            try:
                item = await self._client.receive()
            except KernelDied:
                return
            try:
                await self._send(*item)
            except WebSocketDisconnect:
                await self._client.give_back(item)
                return
            except asyncio.CancelledError:
                await self._client.give_back(item)
                raise

    async def _send(self, channel: str, message: RawMessage) -> None:
        try:
            payload = await in_turns(packing(self._protocol, channel, message, buffers=self._buffers))
        except TooLarge as error:
            payload = pack(self._protocol, channel, self._client.left_out(message, error.message))
        except GuestMisbehaved as error:
            if self._log_rate.take():
                log.warning("a kernel's message was left out", error=error.message)
            return
        if isinstance(payload, str):
            await self._websocket.send_text(payload)
        else:
            await self._websocket.send_bytes(payload)


def _breaks_on_buffers(websocket: WebSocket, protocol: Subprotocol) -> bool:
    # Jupyter Server's gateway client decodes every frame as text, and its notebook gets nothing more after one that
    # is none. Nothing else that is built on tornado leaves the subprotocol out.
    return not protocol and websocket.headers.get("user-agent", "").startswith("Tornado/")


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
