"""Walks the agent's own paths once before the snapshot, so that no clone meets them cold.

The host's part is played over a socket pair: the same handlers run, with the guest's real system behind them.
"""

import asyncio
import hashlib
import hmac
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernel_guest.agent import Agent
from kernel_guest.frames import Frame, Kind, decode, encode

_SECONDS = 120.0
# It names nothing: what the code leaves behind would be in every session.
_CODE = "print('warm', flush=True)\n1 + 1"


async def warm_agent(agent: Agent, home: Path) -> None:
    """Call, execute, write and read once. Raises RuntimeError when something of it does not work."""
    async with asyncio.timeout(_SECONDS):
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        control = asyncio.create_task(agent.control(reader, writer))
        client = _Client(*await asyncio.open_connection(sock=ours))
        await client.expect(Kind.EVENT)
        identity: dict[str, Any] = {"key": os.urandom(32).hex().encode(), "session": uuid.uuid4().hex, "env": {}}
        names = {"hostname": "interpreter", "machine_id": uuid.uuid4().hex}
        renewal: dict[str, Any] = {
            "op": "renew",
            "entropy": os.urandom(64),
            "clock_ns": time.time_ns(),
            **names,
            **identity,
        }
        calls: list[dict[str, Any]] = [renewal, {"op": "ping"}, {"op": "clock", "clock_ns": time.time_ns()}]
        for number, call in enumerate(calls):
            await client.send(Kind.CALL, {"id": number, **call})
            await client.expect(Kind.OK)
        for _ in range(3):
            await _warm_kernel(agent)
        await _warm_files(agent, home)
        client.close()
        await control


async def _warm_kernel(agent: Agent) -> None:
    client = await _open(agent, {"service": "kernel"})
    for kind, content in (
        ("kernel_info_request", {}),
        ("execute_request", {"code": _CODE, "silent": True, "store_history": False, "allow_stdin": False}),
        ("execute_request", {"code": "1/0", "silent": True, "store_history": False, "allow_stdin": False}),
    ):
        request = uuid.uuid4().hex
        parts = _signed(agent.key, request, kind, content)
        await client.send(Kind.MESSAGE, {"channel": "shell", "parts": parts})
        seen: set[str] = set()
        while seen != {"reply", "idle"}:
            frame = await client.expect(Kind.MESSAGE)
            header, parent = (json.loads(frame.body["parts"][at]) for at in (-4, -3))
            if parent.get("msg_id") != request:
                continue
            content = json.loads(frame.body["parts"][-1])
            if header["msg_type"].endswith("_reply"):
                seen.add("reply")
            elif content.get("execution_state") == "idle":
                seen.add("idle")
    client.close()


async def _warm_files(agent: Agent, home: Path) -> None:
    path, content = str(home / ".warm"), bytes(1024 * 1024)
    client = await _open(agent, {"service": "put", "path": path, "size": len(content), "mode": 0o600})
    client.writer.write(content)
    client.writer.write_eof()
    await client.expect(Kind.OK)
    client.close()
    client = await _open(agent, {"service": "get", "path": path})
    await client.send(Kind.CALL, {"start": 0, "count": len(content)})
    await client.read_to_end()
    client.close()
    Path(path).unlink()


async def _open(agent: Agent, body: dict[str, Any]) -> "_Client":
    ours, theirs = socket.socketpair()
    agent.serve(theirs)
    client = _Client(*await asyncio.open_connection(sock=ours))
    await client.send(Kind.OPEN, body)
    await client.expect(Kind.OK)
    return client


class _Client:
    """The host's end of a stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.close: Callable[[], None] = writer.close
        self._reader = reader

    async def send(self, kind: Kind, body: dict[str, Any]) -> None:
        self.writer.write(encode(Frame(kind, body)))
        await self.writer.drain()

    async def expect(self, kind: Kind) -> Frame:
        # Exactly one frame is read: what follows a download's first one is the file itself.
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        frame = decode(await self._reader.readexactly(length))
        if frame.kind is not kind:
            raise RuntimeError(f"the agent answered {frame.kind}: {frame.body}")
        return frame

    async def read_to_end(self) -> None:
        while await self._reader.read(65536):
            continue


def _signed(key: bytes, request: str, kind: str, content: dict[str, Any]) -> list[bytes]:
    header = {"msg_id": request, "msg_type": kind, "session": "warm", "username": "", "date": "", "version": "5.4"}
    parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
    signature = hmac.new(key, b"".join(parts), hashlib.sha256).hexdigest().encode()
    return [b"<IDS|MSG>", signature, *parts]
