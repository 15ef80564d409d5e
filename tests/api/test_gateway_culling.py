"""When Jupyter kernels are culled, on a clock that the tests turn, and what their front ends are told."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import websockets
from channels_client import channels, live_of, new_kernel
from manual_clock import ManualClock
from served import SECONDS, Api, own_home, serve

from interpreter import Engine, Settings
from interpreter.sessions.live import LiveSession

pytestmark = pytest.mark.machine


@asynccontextmanager
async def own(settings: Settings, folder: Path, **more: Any) -> AsyncGenerator[tuple[Api, ManualClock]]:
    clock = ManualClock()
    home = own_home(settings, folder / "home")
    more = {"default_template": "base", "memory_reserve_mb": 256, "cull_idle_timeout": 100, **more}
    async with serve(Settings(home=home, **more), clock) as api:
        yield api, clock


async def passes(clock: ManualClock, seconds: float) -> None:
    # First all that is due runs: who is about to sleep sleeps from now on.
    for _ in range(20):
        await asyncio.sleep(0)
    clock.advance(seconds)


async def culled(live: LiveSession) -> bool:
    async with asyncio.timeout(SECONDS):
        await live.ended.wait()
    return live.record.reason == "timeout"


async def is_there(api: Api, kernel: str) -> bool:
    for _ in range(20):
        await asyncio.sleep(0)
    return (await api.client.get(f"/api/kernels/{kernel}")).status_code == 200


async def test_an_idle_kernel_is_culled_after_its_timeout_and_404_says_why(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path) as (api, clock):
        kernel = await new_kernel(api)
        live = live_of(api, kernel)
        await passes(clock, 99)
        assert await is_there(api, kernel)
        await passes(clock, 2)
        assert await culled(live)
        answer = await api.client.get(f"/api/kernels/{kernel}")
        assert answer.status_code == 404
        assert "timeout" in answer.json()["message"]


async def test_a_kernel_with_a_client_is_kept_and_its_time_counts_from_when_that_left(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path) as (api, clock):
        kernel = await new_kernel(api)
        live = live_of(api, kernel)
        async with channels(api, kernel):
            for _ in range(5):
                await passes(clock, 90)
                assert await is_there(api, kernel)
        await all_left(live)
        await passes(clock, 99)
        assert await is_there(api, kernel)
        await passes(clock, 2)
        assert await culled(live)


async def test_a_connected_kernel_is_culled_when_so_configured_and_its_client_is_told(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path, cull_connected=True) as (api, clock):
        kernel = await new_kernel(api)
        live = live_of(api, kernel)
        async with channels(api, kernel) as client:
            await passes(clock, 101)
            frame = await client.receive()
            assert frame.content["execution_state"] == "dead"
            assert frame.content["reason"] == "culled: the kernel was not used for 100 s"
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, frame.content["reason"])
        assert await culled(live)


@pytest.mark.parametrize("cull_busy", [False, True])
async def test_a_busy_kernel_is_culled_only_when_so_configured(
    engine: Engine, settings: Settings, tmp_path: Path, cull_busy: bool
) -> None:
    async with own(settings, tmp_path, cull_busy=cull_busy) as (api, clock):
        kernel = await new_kernel(api)
        live = live_of(api, kernel)
        async with channels(api, kernel, "mine") as client:
            await client.ask("input()", allow_stdin=True)
            await client.until(lambda frame: frame.type == "input_request")
        await all_left(live)
        await passes(clock, 101)
        if cull_busy:
            assert await culled(live)
            return
        assert await is_there(api, kernel)
        async with channels(api, kernel, "mine") as client:
            await client.send("input_reply", {"value": ""}, "stdin")
            await client.until(lambda f: f.content.get("execution_state") == "idle")
        await all_left(live)
        await passes(clock, 101)
        assert await culled(live)


async def test_a_tab_that_looks_at_its_kernel_is_no_activity_and_code_is(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path) as (api, clock):
        kernel = await new_kernel(api)
        made = (await api.client.get(f"/api/kernels/{kernel}")).json()["last_activity"]
        async with channels(api, kernel) as client:
            await passes(clock, 10)
            await client.answered(await client.send("kernel_info_request", {}))
            await client.answered(await client.send("comm_info_request", {}))
            assert (await api.client.get(f"/api/kernels/{kernel}")).json()["last_activity"] == made
            await client.execute("1")
            assert (await api.client.get(f"/api/kernels/{kernel}")).json()["last_activity"] > made


async def test_a_cell_of_a_notebook_is_given_time_when_the_service_is_stopped(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path, drain_seconds=SECONDS) as (api, _):
        kernel = await new_kernel(api)
        async with channels(api, kernel) as client:
            asked = await client.ask("print(input())", allow_stdin=True)
            await client.until(lambda frame: frame.type == "input_request")
            draining = asyncio.create_task(api.service.sessions.drain())
            await asyncio.sleep(0)
            assert (await api.client.post("/api/kernels", json={"name": "base"})).status_code == 503
            await client.send("input_reply", {"value": "in time"}, "stdin")
            frames = await client.answered(asked)
            assert "".join(f.content["text"] for f in frames if f.type == "stream") == "in time\n"
            frames = await client.until(lambda f: f.content.get("execution_state") == "dead")
            assert frames[-1].content["reason"] == "the service is being stopped"
            await draining


async def all_left(live: LiveSession) -> None:
    """Wait until the service has noticed that no client is connected any more."""
    async with asyncio.timeout(SECONDS):
        while live.clients.connections:  # noqa: ASYNC110  (nothing tells of it)
            await asyncio.sleep(0.01)
