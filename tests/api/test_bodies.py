"""Bodies of requests: counted with their session as long as they are under way, and let go of at once after that."""

import asyncio
import gc
import itertools
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from served import Api
from unopened import unopened_app

from interpreter import Settings
from interpreter.kernel.memory import size_of

SECONDS = 60.0
LARGE = 1_000_000
PADDING = b"x" * 3 * LARGE
BODIES = {
    "no JSON": b'{"code": "' + PADDING,
    "no text": b'{"code": "\xff' + PADDING + b'"}',
    "no code": b'{"other": "' + PADDING + b'"}',
    "too long code": b'{"code": "' + PADDING * 3 + b'"}',
    "too many values": b"[" + PADDING.replace(b"x", b"0,") + b"0]",
    "for no session": b'{"code": "' + PADDING + b'"}',
}


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncGenerator[httpx.AsyncClient]:
    async with unopened_app(Settings(home=tmp_path)) as app:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client


def large() -> Iterator[object]:
    """Long texts that anything holds which the collector knows of."""
    for held in itertools.chain.from_iterable(map(gc.get_referents, gc.get_objects())):
        if isinstance(held, str | bytes) and len(held) > LARGE:
            yield held


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_that_was_refused_is_not_held(tmp_path: Path, kind: str) -> None:
    headers = {"Content-Type": "application/json"}
    async with opened(tmp_path) as client:
        gc.collect()
        before = {id(text) for text in (*large(), *BODIES.values(), PADDING)}
        gc.disable()
        try:
            answer = await client.post("/v1/sessions/none/execute", content=BODIES[kind], headers=headers)
            assert 400 <= answer.status_code < 500
            del answer
            assert [text for text in large() if id(text) not in before] == []
        finally:
            gc.enable()


@pytest.mark.machine
async def test_a_body_is_counted_with_its_session_from_its_head_until_its_code_is(api: Api, shared: str) -> None:
    live = api.service.sessions.live_session(shared)
    assert live is not None
    sent, code = live.session.memory.sent, "'" + "x" * 2 * LARGE + "';open('seen', 'w')"
    body = json.dumps({"code": code}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"POST /v1/sessions/{shared}/execute HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:LARGE])
    async with asyncio.timeout(SECONDS):
        while not sent.held:  # noqa: ASYNC110  (no event tells of it)
            await asyncio.sleep(0)
        assert sent.held == len(body) <= live.held_bytes
        # What is short does not wait for it.
        assert await api.printed(shared, "print(1)") == "1\n"
        writer.write(body[LARGE:])
        await reader.readuntil(b"\r\n\r\n")
    assert sent.held == 0
    writer.close()


@pytest.mark.machine
async def test_a_notebook_is_counted_with_its_session_while_it_runs(api: Api, session_id: str) -> None:
    live = api.service.sessions.live_session(session_id)
    assert live is not None
    cells = [f"'{'x' * LARGE}\U0001f600';", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)"]
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {},
        "cells": [{"cell_type": "code", "metadata": {}, "outputs": [], "source": source} for source in cells],
    }
    wanted = {"session_id": session_id, "context_id": "main", "notebook": notebook}
    events = {"Accept": "text/event-stream"}
    started = 0
    async with api.client.stream("POST", "/v1/notebooks/execute", json=wanted, headers=events) as answer:
        async for line in answer.aiter_lines():
            started += line == "event: cell_started"
            if line == "event: cell_started" and started == len(cells):
                assert live.session.memory.kept.held > size_of(cells)
                put = await api.client.put(f"/v1/sessions/{session_id}/files/content?path=go", content=b"1")
                assert put.is_success, put.text
    assert live.session.memory.kept.held < LARGE
