"""Packed bodies come out as they went in, in pieces of any size; what is not what it says is refused."""

import asyncio
import gzip
import os
import zlib

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.types import Message

from interpreter import Settings
from interpreter.api import problems
from interpreter.api.http.limits import BodyLimitMiddleware
from interpreter.api.http.unpacking import Coding, UnknownCoding, Unpacker, coding_of, unpacked


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = {"gzip": gzip.compress, "zlib": zlib.compress, "deflate": raw_deflate}
CODINGS: dict[str, Coding] = {"gzip": "gzip", "zlib": "deflate", "deflate": "deflate"}


@given(data=st.binary(max_size=3000), kind=st.sampled_from(sorted(PACKED)), step=st.integers(1, 700))
def test_what_is_packed_comes_out_however_it_is_cut(data: bytes, kind: str, step: int) -> None:
    packed, unpacker = PACKED[kind](data), Unpacker(CODINGS[kind])
    pieces = [piece for at in range(0, len(packed), step) for piece in unpacker.feed(packed[at : at + step])]
    unpacker.finish()
    assert b"".join(pieces) == data


def test_much_of_little_comes_in_pieces() -> None:
    unpacker = Unpacker("gzip")
    sizes = [len(piece) for piece in unpacker.feed(gzip.compress(bytes(10_000_000)))]
    unpacker.finish()
    assert sum(sizes) == 10_000_000
    assert max(sizes) <= 256 * 1024


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_gzip_files_one_after_the_other_are_one(step: int) -> None:
    packed, unpacker = gzip.compress(b"one") + gzip.compress(b"two"), Unpacker("gzip")
    pieces = [piece for at in range(0, len(packed), step) for piece in unpacker.feed(packed[at : at + step])]
    unpacker.finish()
    assert b"".join(pieces) == b"onetwo"


@pytest.mark.parametrize("kind", sorted(PACKED))
def test_what_is_cut_short_is_told(kind: str) -> None:
    packed, unpacker = PACKED[kind](os.urandom(1000)), Unpacker(CODINGS[kind])
    list(unpacker.feed(packed[:-5]))
    with pytest.raises(ValueError, match="ends before"):
        unpacker.finish()


@pytest.mark.parametrize(("coding", "data"), [("gzip", b"plain text"), ("deflate", zlib.compress(b"x") + b"more")])
def test_what_is_not_packed_is_told(coding: Coding, data: bytes) -> None:
    unpacker = Unpacker(coding)
    with pytest.raises(ValueError, match=r"header|follows"):
        list(unpacker.feed(data))


@pytest.mark.parametrize(
    ("value", "coding"),
    [
        ("gzip", "gzip"),
        ("X-GZip", "gzip"),
        ("deflate", "deflate"),
        ("identity", None),
        ("", None),
        ("identity, gzip", "gzip"),
    ],
)
def test_how_a_body_is_packed_is_told_by_its_header(value: str, coding: str | None) -> None:
    assert coding_of(Headers({"content-encoding": value})) == coding


@pytest.mark.parametrize("value", ["br", "zstd", "gzip, gzip", "compress"])
def test_what_is_not_unpacked_here_is_none(value: str) -> None:
    with pytest.raises(UnknownCoding):
        coding_of(Headers({"content-encoding": value}))


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI()

    @app.put("/v1/sessions/x/files/content")
    async def length(request: Request) -> dict[str, object]:  # pyright: ignore[reportUnusedFunction]
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return {"size": size, "told": request.headers.get("content-length")}

    @app.post("/json")
    async def echo(body: dict[str, int]) -> dict[str, int]:  # pyright: ignore[reportUnusedFunction]
        return body

    problems.install(app)
    app.add_middleware(BodyLimitMiddleware, settings=Settings(upload_limit=1_000_000))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_a_file_is_counted_as_it_comes_out(client: httpx.AsyncClient) -> None:
    async def put(size: int) -> httpx.Response:
        content, headers = gzip.compress(bytes(size)), {"Content-Encoding": "gzip"}
        return await client.put("/v1/sessions/x/files/content", content=content, headers=headers)

    assert (await put(1_000_000)).json() == {"size": 1_000_000, "told": None}
    refused = await put(1_000_001)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_large")


async def test_json_may_be_packed_and_is_counted_all_the_same(client: httpx.AsyncClient) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    answer = await client.post("/json", content=gzip.compress(b'{"a": 1}'), headers=headers)
    assert answer.json() == {"a": 1}
    bomb = gzip.compress(b"[" + b" " * 20_000_000 + b"]")
    assert (await client.post("/json", content=bomb, headers=headers)).status_code == 413
    broken = await client.post("/json", content=b'{"a": 1}', headers=headers)
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "bad_request")


async def test_another_coding_is_refused_with_those_there_are(client: httpx.AsyncClient) -> None:
    headers = {"Content-Encoding": "zstd"}
    refused = await client.put("/v1/sessions/x/files/content", content=b"x", headers=headers)
    assert (refused.status_code, refused.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "zstd" in refused.json()["error"]["message"]


async def test_others_have_their_turn_while_much_is_unpacked() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def receive() -> Message:
        return {"type": "http.request", "body": gzip.compress(bytes(10_000_000)), "more_body": False}

    _, receive_unpacked = unpacked({"type": "http", "headers": []}, receive, "gzip")
    counting = asyncio.create_task(count())
    while (await receive_unpacked())["more_body"]:
        continue
    counting.cancel()
    assert turns >= 10_000_000 // (256 * 1024)
