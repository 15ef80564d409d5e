"""``make bench-jupyter``: a kernel behind the gateway against a plain one in the same guest; many kernels at once.

Writes benchmarks/jupyter.json. Both sides are asked by lean clients: ZeroMQ sockets in the guest, a WebSocket outside.
"""

import asyncio
import contextlib
import json
import os
import shlex
import statistics
import time
import uuid
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import websockets

from benchmarks.report import Figures, console, show, write
from benchmarks.service import Serving, serving, templates_of
from interpreter import Accelerator, Engine, build_template, load_settings

RESULTS = Path(__file__).with_name("jupyter.json")
BASELINE = Path(__file__).with_name("plain_kernel.py")
TURNS = 5
KERNELS = int(os.environ.get("BENCH_KERNELS", "20"))
SECONDS = int(os.environ.get("BENCH_SECONDS", "60"))
_CELL = ("busy", "execute_input", "stream", "execute_result", "idle")
CASES = {
    "round_trip": ("1+1", 30),
    "prints": ("for n in range(1000): print(n)", 1),
    "flushed_prints": ("for n in range(1000): print(n, flush=True)", 1),
    "ten_mb": ("print('x' * 10_000_000)", 1),
    "ten_mb_of_lines": ("line = 'x' * 99\nfor _ in range(100_000): print(line)", 1),
}
"""Code, and how often it runs in a row for one figure."""


class Client:
    """Kernel messages over a WebSocket, in the form that JupyterLab speaks through a gateway."""

    def __init__(self, socket: websockets.ClientConnection) -> None:
        self._socket = socket
        self._session = uuid.uuid4().hex

    async def ask(self, code: str) -> str:
        """Send code; returns the request's id."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "session": self._session}
        header |= {"username": "", "date": datetime.now(UTC).isoformat(), "version": "5.4"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
        await self._socket.send(json.dumps({**message, "buffers": []}))
        return header["msg_id"]

    async def receive(self) -> dict[str, Any]:
        """The next message."""
        return json.loads(await self._socket.recv())

    async def run(self, code: str) -> None:
        """Run code until its reply and its idle are there."""
        asked = await self.ask(code)
        left = {"reply", "idle"}
        while left:
            message = await self.receive()
            if message["parent_header"].get("msg_id") == asked:
                left -= {"reply"} if message["channel"] == "shell" else set()
                left -= {"idle"} if message["content"].get("execution_state") == "idle" else set()


@contextlib.asynccontextmanager
async def kernel(service: Serving, template: str) -> AsyncGenerator[tuple[str, Client]]:
    """A kernel's session id, and a client of it."""
    answer = await service.client.post("/api/kernels", json={"name": template})
    answer.raise_for_status()
    kernel_id = answer.json()["id"]
    url = f"ws://127.0.0.1:{service.client.base_url.port}/api/kernels/{kernel_id}/channels"
    async with websockets.connect(url, max_size=None, compression=None, proxy=None) as socket:
        yield kernel_id.replace("-", ""), Client(socket)
    (await service.client.delete(f"/api/kernels/{kernel_id}")).raise_for_status()


async def compare(service: Serving, template: str, figures: Figures) -> None:
    """Each case through the WebSocket and inside the same guest, in turns; the best of the turns of each."""
    times: dict[str, list[float]] = {}
    async with kernel(service, template) as (session_id, client):
        url = f"/v1/sessions/{session_id}"
        put = await service.client.put(
            f"{url}/files/content", params={"path": "plain_kernel.py"}, content=BASELINE.read_bytes()
        )
        put.raise_for_status()
        for _ in range(TURNS):
            body = {"command": f"python3 plain_kernel.py {shlex.quote(json.dumps(CASES))}"}
            answer = (await service.client.post(f"{url}/commands", json=body)).json()
            assert answer["exit_code"] == 0, answer
            for name, seconds in json.loads(answer["stdout"]).items():
                times.setdefault(f"{name}_inside_ms", []).append(seconds * 1000)
            for name, (code, count) in CASES.items():
                began = time.perf_counter()
                for _ in range(count):
                    await client.run(code)
                times.setdefault(f"{name}_ms", []).append((time.perf_counter() - began) / count * 1000)
    figures |= {name: statistics.median(values) for name, values in times.items()}
    for name in CASES:
        figures[f"{name}_ratio"] = figures[f"{name}_ms"] / figures[f"{name}_inside_ms"]


async def many(service: Serving, template: str, figures: Figures) -> None:
    """Many kernels at once, each with a cell a second: every message must come, in order."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [(await stack.enter_async_context(kernel(service, template)))[1] for _ in range(KERNELS)]
        for client in clients:
            await client.run("import os")
        each = await asyncio.gather(*(cell_a_second(client) for client in clients))
    times = sorted(seconds for one in each for seconds in one)
    figures |= {"kernels": KERNELS, "cells": len(times)}
    figures["cell_p50_ms"] = statistics.median(times) * 1000
    figures["cell_p99_ms"] = times[int(len(times) * 0.99)] * 1000


async def cell_a_second(client: Client) -> list[float]:
    """Seconds from each cell's request to its end. Raises AssertionError when a message is missing or out of order."""
    asked: list[tuple[str, float]] = []
    began = time.perf_counter()

    async def ask() -> None:
        for number in range(SECONDS):
            await asyncio.sleep(max(began + number - time.perf_counter(), 0))
            sent = time.perf_counter()
            asked.append((await client.ask(f"print({number}); {number}"), sent))

    asking = asyncio.create_task(ask())
    # Each channel has its order; between them there is none.
    outputs: list[tuple[str, str]] = []
    replies: list[str] = []
    printed: dict[str, str] = {}
    ended: dict[str, float] = {}
    while len(replies) < SECONDS or len(outputs) < SECONDS * len(_CELL):
        message = await client.receive()
        parent = message["parent_header"]["msg_id"]
        if message["channel"] == "shell":
            assert message["content"]["status"] == "ok"
            replies.append(parent)
        else:
            kind = message["content"].get("execution_state") or message["msg_type"]
            if kind == "stream":
                printed[parent] = printed.get(parent, "") + message["content"]["text"]
            # What is printed may come in several pieces.
            if outputs[-1:] != [(parent, kind)]:
                outputs.append((parent, kind))
        ended[parent] = time.perf_counter()
    await asking
    requests = [request for request, _ in asked]
    assert replies == requests, "replies are missing, or out of order"
    assert outputs == [(request, kind) for request in requests for kind in _CELL], "output is missing, or out of order"
    assert [printed[request] for request in requests] == [f"{number}\n" for number in range(SECONDS)]
    return [ended[request] - sent for request, sent in asked]


async def main() -> None:
    """Measure and tell."""
    settings = load_settings()
    template = os.environ.get("BENCH_TEMPLATE", "python-data")
    figures: Figures = {}
    async with Engine(settings) as engine:
        accelerator = Accelerator(engine.accelerator.accelerator)
        with console.status("measuring kernels") as status:
            await build_template(settings, template, accelerator, status.update)
            with templates_of(settings.home) as home:
                async with serving(home, INTERPRETER_DEFAULT_TEMPLATE=template) as service:
                    status.update("a kernel against a plain one in the same guest")
                    await compare(service, template, figures)
                    status.update(f"{KERNELS} kernels for {SECONDS} s")
                    await many(service, template, figures)
    show(figures, {name: "<= 1.5" for name in figures if name.endswith("_ratio")})
    write(RESULTS, template, accelerator, figures)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    asyncio.run(main())
