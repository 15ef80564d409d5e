"""A cancellation is never lost, wherever it hits: at each step that a call takes, against a real HTTP server."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal

import pytest

from interpreter.client import AsyncClient

SECONDS = 20.0
MOST_STEPS = 200
EVENTS: list[dict[str, Any]] = [
    {"type": "started", "cells": 2},
    {"type": "input_request", "prompt": "?"},
    {"type": "stream", "name": "stdout", "text": "x" * 40},
    {"type": "done", "status": "ok", "notebook": {}, "execution_count": 1, "exit_code": 0, "duration_seconds": 0.1},
]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Use = Callable[[AsyncClient], Coroutine[Any, Any, object]]
When = Literal["while it runs", "while it waits", "as its wait ends"]


class Service:
    """Answers what asks for events with some, in pieces; all else with nothing."""

    def __init__(self) -> None:
        self.url = ""
        self.connections: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line[15:] for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"]
                await reader.readexactly(int(lengths[0]) if lengths else 0)
                if b"text/event-stream" in head:
                    writer.write(HEAD)
                    await self._tell(writer)
                else:
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        for event in EVENTS:
            text = f"data: {json.dumps(event)}\n\n".encode()
            for piece in (text[:9], text[9:]):
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.write(b"0\r\n\r\n")

    async def left(self) -> bool:
        """Whether all connections are closed."""
        return not self.connections or not (await asyncio.wait(self.connections, timeout=SECONDS))[1]


@contextlib.asynccontextmanager
async def served() -> AsyncGenerator[Service]:
    service = Service()
    async with await asyncio.start_server(service.serve, "127.0.0.1", 0) as listener:
        service.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield service


class Stepped(Awaitable[object]):
    """Runs a coroutine, and cancels its task once: before, in, or just after one of its waits."""

    def __init__(self, work: Coroutine[Any, Any, object], step: int, when: When) -> None:
        self.cancelled = False
        self._work = work
        self._step = step
        self._when = when

    def __await__(self) -> Generator[Any, Any, object]:
        value, error, step = None, None, 0
        while True:
            if step == self._step and self._when == "while it runs":
                self._cancel()
            try:
                waited = self._work.send(value) if error is None else self._work.throw(error)
            except StopIteration as ended:
                return ended.value
            if step == self._step and self._when == "as its wait ends" and waited is not None:
                # Before the task itself is told, which then has both a result and a cancellation.
                waited.add_done_callback(lambda _: self._cancel())
            elif step == self._step and self._when != "while it runs":
                asyncio.get_running_loop().call_soon(self._cancel)
            step += 1
            value = error = None
            try:
                value = yield waited
            except BaseException as thrown:
                error = thrown

    def start(self) -> asyncio.Task[object]:
        """Run it in a task of its own."""

        async def run() -> object:
            return await self

        self._task = asyncio.create_task(run())
        return self._task

    def _cancel(self) -> None:
        self.cancelled = True
        self._task.cancel()


async def cells(client: AsyncClient) -> None:
    async with contextlib.aclosing(client.session("x").stream_notebook({"cells": []})) as events:
        async for _ in events:
            pass


async def code(client: AsyncClient) -> None:
    await client.session("x").execute("1")


async def asking(client: AsyncClient) -> None:
    async def answer(prompt: str, password: bool) -> str:
        await asyncio.sleep(0)
        return "yes"

    async with contextlib.aclosing(client.session("x").stream("input()", on_input=answer)) as events:
        async for _ in events:
            pass


async def command(client: AsyncClient) -> None:
    await client.session("x").run("ls")


async def whole(url: str, use: Use) -> str:
    async with AsyncClient(url) as client:
        await use(client)
    return "to its end"


@pytest.mark.parametrize("when", ["while it runs", "while it waits", "as its wait ends"])
@pytest.mark.parametrize("use", [cells, code, asking, command])
async def test_a_cancellation_is_never_lost(use: Use, when: When) -> None:
    for step in range(MOST_STEPS):
        async with served() as service:
            stepped = Stepped(whole(service.url, use), step, when)
            task = stepped.start()
            done, _ = await asyncio.wait({task}, timeout=SECONDS)
            if not done:
                for one in asyncio.all_tasks():
                    one.print_stack()
            assert done, f"it goes on after it was cancelled at step {step}"
            assert await service.left()
            if not task.cancelled():
                # Past its last wait there was nothing left to cancel.
                assert task.result() == "to its end"
                break
    else:
        raise AssertionError("it has no end")
    assert step > 5
