"""Messages pass the whole way, client to kernel and back, byte for byte, whatever is in them."""

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from channels_client import Channels, Frame, channels, new_kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import Api

pytestmark = pytest.mark.machine

# The kernel keeps the parts of each comm message as they came, and sends them back as buffers.
ECHO = """
import json
from ipykernel.comm import Comm
kernel = get_ipython().kernel

def opened(comm, message):
    def answer(message):
        comm.send({"n": len(message["buffers"])}, metadata=message["metadata"], buffers=[
            *(json.dumps(message[key], default=str).encode() for key in ("content", "metadata")),
            *(bytes(buffer) for buffer in message["buffers"]),
        ])
    comm.on_msg(answer)

kernel.comm_manager.register_target("echo", opened)
"""
MEGABYTE = 1024 * 1024

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)
sizes = st.lists(st.sampled_from([0, 1, 2, 255, 4095, 4096, 65_535, 65_536, 300_000]), max_size=4)


@asynccontextmanager
async def echo(api: Api, kernel: str, *, v1: bool) -> AsyncGenerator[tuple[Channels, str]]:
    async with channels(api, kernel, v1=v1) as client:
        await client.execute(ECHO)
        comm = uuid.uuid4().hex
        await client.open_comm(comm, "echo")
        yield client, comm


async def echoed(client: Channels, comm: str, data: Any, buffers: list[bytes]) -> Frame:
    sent = await client.send("comm_msg", {"comm_id": comm, "data": data}, buffers=buffers)
    frames = await client.answered_output(sent)
    return next(frame for frame in frames if frame.type == "comm_msg")


@pytest.mark.parametrize("v1", [False, True], ids=["json", "v1"])
async def test_generated_messages_come_back_as_they_went(api: Api, v1: bool) -> None:
    kernel = await new_kernel(api)
    random.seed(1)
    async with echo(api, kernel, v1=v1) as (client, comm):
        loop = asyncio.get_running_loop()

        @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(data=values, lengths=sizes)
        def each(data: Any, lengths: list[int]) -> None:
            buffers = [random.randbytes(length) for length in lengths]
            back = asyncio.run_coroutine_threadsafe(echoed(client, comm, data, buffers), loop).result()
            assert back.content["data"] == {"n": len(buffers)}
            content, _, *returned = back.buffers
            assert json.loads(content) == {"comm_id": comm, "data": data}
            assert returned == buffers

        await asyncio.to_thread(each)
    await api.client.delete(f"/api/kernels/{kernel}")


@pytest.mark.parametrize("v1", [False, True], ids=["json", "v1"])
@pytest.mark.parametrize("length", [0, MEGABYTE - 1, 8 * MEGABYTE])
async def test_a_buffer_of_up_to_8_mb_comes_back_as_it_went(api: Api, length: int, v1: bool) -> None:
    kernel = await new_kernel(api)
    buffer = random.randbytes(length)
    async with echo(api, kernel, v1=v1) as (client, comm):
        back = await echoed(client, comm, {}, [b"before", buffer, b"", b"after"])
    assert back.buffers[2:] == [b"before", buffer, b"", b"after"]
    await api.client.delete(f"/api/kernels/{kernel}")


async def test_in_v1_the_kernels_own_bytes_arrive(api: Api, shared_kernel: str) -> None:
    # The kernel signs what it sends; what arrives must be the bytes that it signed, not the same in other words.
    code = """
import hashlib, json
session = get_ipython().kernel.session
kept = []
before = session.sign
def sign(parts):
    kept.append(hashlib.sha256(b"".join(parts)).hexdigest())
    return before(parts)
session.sign = sign
"""
    undo = "session.sign = before; print(json.dumps(kept))"
    async with channels(api, shared_kernel, v1=True) as client:
        await client.execute(code)
        shown = await client.execute("display({'text/plain': 'ü\\u2028 1.50'}, raw=True); 1e300")
        told = await client.execute(undo)
    signed = set(json.loads("".join(frame.content["text"] for frame in told if frame.type == "stream")))
    wanted = [frame for frame in shown if frame.type in {"display_data", "execute_result", "execute_reply"}]
    assert len(wanted) == 3
    for frame in wanted:
        assert hashlib.sha256(b"".join(frame.raw)).hexdigest() in signed


async def test_many_small_messages_keep_their_order(api: Api, shared_kernel: str) -> None:
    async with channels(api, shared_kernel) as client:
        frames = await client.execute("for n in range(1000): print(n, flush=True)")
    assert "".join(f.content["text"] for f in frames if f.type == "stream") == "".join(f"{n}\n" for n in range(1000))
