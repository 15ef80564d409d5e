"""Bodies of requests: what was refused, for whatever cause, is let go of at once, not when the collector comes."""

import gc
import itertools
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from unopened import unopened_app

from interpreter import Settings

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
    ours = {id(body) for body in (*BODIES.values(), PADDING)}
    headers = {"Content-Type": "application/json"}
    async with opened(tmp_path) as client:
        gc.collect()
        gc.disable()
        try:
            answer = await client.post("/v1/sessions/none/execute", content=BODIES[kind], headers=headers)
            assert 400 <= answer.status_code < 500
            del answer
            assert [text for text in large() if id(text) not in ours] == []
        finally:
            gc.enable()
