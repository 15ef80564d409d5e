"""A client of a kernel's channels that the tests drive: both WebSocket forms, written apart from the product's own."""

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import websockets
from served import SECONDS, Api

from interpreter.sessions.live import LiveSession

V1 = "v1.kernel.websocket.jupyter.org"


@dataclass
class Frame:
    """A message as a client sees it. ``raw`` holds the four JSON parts as they came, in the v1 form."""

    channel: str
    header: dict[str, Any]
    parent: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: list[bytes] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)

    @property
    def type(self) -> str:
        return self.header["msg_type"]


class Channels:
    def __init__(self, socket: websockets.ClientConnection, session: str) -> None:
        self.socket = socket
        self.session = session
        self.v1 = socket.subprotocol == V1

    async def send(
        self,
        msg_type: str,
        content: dict[str, Any],
        channel: str = "shell",
        buffers: list[bytes] | None = None,
        **more: str,
    ) -> str:
        """Send a message, with ``more`` in its header; returns its id."""
        header = {
            **more,
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": self.session,
            "username": "tests",
            "date": "2026-01-01T00:00:00Z",
            "version": "5.4",
        }
        await self.socket.send(self.packed(channel, header, content, buffers or []))
        return header["msg_id"]

    def packed(self, channel: str, header: Any, content: Any, buffers: list[bytes]) -> str | bytes:
        if self.v1:
            pieces = [channel.encode(), *(json.dumps(part).encode() for part in (header, {}, {}, content)), *buffers]
            offsets = [8 * (len(pieces) + 2)]
            for piece in pieces:
                offsets.append(offsets[-1] + len(piece))
            return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(pieces)
        message = {"channel": channel, "header": header, "parent_header": {}, "metadata": {}, "content": content}
        text = json.dumps({**message, "buffers": []})
        if not buffers:
            return text
        pieces = [text.encode(), *buffers]
        offsets = [4 * (len(pieces) + 1)]
        for piece in pieces[:-1]:
            offsets.append(offsets[-1] + len(piece))
        return struct.pack(f">{len(offsets) + 1}I", len(offsets), *offsets) + b"".join(pieces)

    async def receive(self) -> Frame:
        async with asyncio.timeout(SECONDS):
            payload = await self.socket.recv()
        if self.v1:
            assert isinstance(payload, bytes)
            (count,) = struct.unpack_from("<Q", payload)
            offsets = struct.unpack_from(f"<{count}Q", payload, 8)
            channel, *parts = [payload[a:b] for a, b in pairwise(offsets)]
            header, parent, metadata, content = (json.loads(part) for part in parts[:4])
            return Frame(channel.decode(), header, parent, metadata, content, parts[4:], parts[:4])
        buffers: list[bytes] = []
        if isinstance(payload, bytes):
            (count,) = struct.unpack_from(">I", payload)
            offsets = [*struct.unpack_from(f">{count}I", payload, 4), len(payload)]
            payload, *buffers = [payload[a:b] for a, b in pairwise(offsets)]
        message = json.loads(payload)
        assert message["msg_id"] == message["header"]["msg_id"]
        header, parent = message["header"], message["parent_header"]
        return Frame(message["channel"], header, parent, message["metadata"], message["content"], buffers)

    async def until(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """All messages up to the first one that is wanted, that one included."""
        frames = [await self.receive()]
        while not wanted(frames[-1]):
            frames.append(await self.receive())
        return frames

    async def answered(self, msg_id: str) -> list[Frame]:
        """What belongs to a request, until both its reply and its idle are there."""
        frames: list[Frame] = []
        left = {"reply", "idle"}
        while left:
            frame = await self.receive()
            if frame.parent.get("msg_id") != msg_id:
                continue
            frames.append(frame)
            if frame.channel in {"shell", "control"}:
                left.discard("reply")
            if frame.type == "status" and frame.content["execution_state"] == "idle":
                left.discard("idle")
        return frames

    async def answered_output(self, msg_id: str) -> list[Frame]:
        """What belongs to a message that has no reply, such as comms', until its idle."""
        return [
            frame
            for frame in await self.until(
                lambda f: f.parent.get("msg_id") == msg_id and f.content.get("execution_state") == "idle"
            )
            if frame.parent.get("msg_id") == msg_id
        ]

    async def open_comm(self, comm: str, target: str) -> None:
        """Open a comm, and wait until the kernel has: ipykernel 7.4 may take what follows at once before it."""
        sent = await self.send("comm_open", {"comm_id": comm, "target_name": target, "data": {}})
        await self.answered_output(sent)

    async def ask(self, code: str, **more: Any) -> str:
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
            **more,
        }
        return await self.send("execute_request", content)

    async def execute(self, code: str, **more: Any) -> list[Frame]:
        """Run code; all its messages."""
        return await self.answered(await self.ask(code, **more))

    async def printed(self, code: str) -> str:
        """What code prints."""
        return text_of(await self.execute(code))


def text_of(frames: list[Frame]) -> str:
    return "".join(frame.content["text"] for frame in frames if frame.type == "stream")


async def new_kernel(api: Api, **more: Any) -> str:
    answer = await api.client.post("/api/kernels", json={"name": "base", **more})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def live_of(api: Api, kernel_id: str) -> LiveSession:
    """The service's own view of a kernel."""
    live = api.service.sessions.live_session(kernel_id.replace("-", ""))
    assert live is not None
    return live


@asynccontextmanager
async def channels(api: Api, kernel_id: str, session: str = "", *, v1: bool = False) -> AsyncGenerator[Channels]:
    """A connection to a kernel's channels; ``session`` is the client's name."""
    async with connect(api.port, kernel_id, session, v1=v1) as client:
        yield client


@asynccontextmanager
async def connect(port: int | None, kernel_id: str, session: str = "", *, v1: bool = False) -> AsyncGenerator[Channels]:
    """The same at a service of which only the port is known."""
    url = f"ws://127.0.0.1:{port}/api/kernels/{kernel_id}/channels"
    async with websockets.connect(
        f"{url}?session_id={session}" if session else url,
        subprotocols=[websockets.Subprotocol(V1)] if v1 else None,
        max_size=None,
        compression=None,
        proxy=None,
    ) as socket:
        yield Channels(socket, session or uuid.uuid4().hex)
