"""How sessions end by themselves, on a clock that the tests turn: both timeouts, silence, death, memory, shutdown."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manual_clock import ManualClock
from served import SECONDS, Api, own_home, serve

from interpreter import Engine, Settings
from interpreter.client import AsyncClient

pytestmark = pytest.mark.machine


@asynccontextmanager
async def own(settings: Settings, folder: Path, **more: Any) -> AsyncGenerator[tuple[Api, ManualClock]]:
    clock = ManualClock()
    home = own_home(settings, folder / "home")
    more = {"default_template": "base", "memory_reserve_mb": 256, **more}
    async with serve(Settings(home=home, **more), clock) as api:
        yield api, clock


async def ended(api: Api, session_id: str) -> dict[str, Any]:
    live = api.service.sessions.live_session(session_id)
    if live is not None:
        async with asyncio.timeout(SECONDS):
            await live.ended.wait()
    return (await api.client.get(f"/v1/sessions/{session_id}")).json()


async def live_past(api: Api, clock: ManualClock, seconds: float, other: str) -> None:
    """Let that many seconds pass and another session end of it: one that was to end by now has begun to."""
    clock.advance(seconds)
    assert (await ended(api, other))["reason"] == "timeout"


async def settled() -> None:
    """Let every task that is due run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_in_total_mode_time_counts_from_the_start(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path) as (api, clock):
        other = await api.new(timeout_seconds=98)
        session_id = await api.new(timeout_seconds=100)
        clock.advance(60)
        await api.run(session_id, "1")
        await live_past(api, clock, 39, other)
        assert (await api.client.get(f"/v1/sessions/{session_id}")).json()["state"] == "running"
        clock.advance(2)
        seen = await ended(api, session_id)
        assert (seen["state"], seen["reason"]) == ("stopped", "timeout")


async def test_what_runs_when_time_is_up_is_told_so(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path) as (api, clock), AsyncClient(f"http://127.0.0.1:{api.port}") as client:
        session_id = await api.new(timeout_seconds=100)
        session = client.session(session_id)
        environment = {**os.environ, "INTERPRETER_URL": f"http://127.0.0.1:{api.port}"}
        loop = "print('on', flush=True)\nwhile True: pass"
        typed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from interpreter.cli import main; main()"),
            *("session", "exec", session_id, "-c", loop),
            env={name: value for name, value in environment.items() if name != "INTERPRETER_API_KEY"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert typed.stdout is not None
        assert await typed.stdout.readline() == b"on\n"
        # Beside what runs: what waits behind it, a command, and a notebook in a kernel of its own.
        waiting = asyncio.create_task(session.execute("1"))
        command = asyncio.create_task(session.run("sleep 1000"))
        cell = {"cell_type": "code", "source": "while True: pass"}
        notebook = asyncio.create_task(session.execute_notebook({"nbformat": 4, "cells": [cell]}))
        live = api.service.sessions.live_session(session_id)
        assert live is not None
        async with asyncio.timeout(SECONDS):
            while len(live.executions.all()) < 3 or not live.commands.all():
                await settled()
        clock.advance(101)
        ends = [await waiting, await command, await notebook]
        assert [end.status for end in ends] == ["cancelled", "cancelled", "failed"]
        for end in ends:
            error = end.error
            assert error is not None
            assert error["code"] == "session_expired"
            assert "100 s" in error["message"]
        _, told = await typed.communicate()
        assert (typed.returncode, b"error (session_expired)" in told) == (3, True)


async def test_in_idle_mode_time_counts_from_the_last_use(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path) as (api, clock):
        session_id = await api.new(timeout_seconds=100, timeout_mode="idle")
        for _ in range(3):
            clock.advance(60)
            await api.run(session_id, "1")
        clock.advance(101)
        seen = await ended(api, session_id)
        assert (seen["state"], seen["reason"]) == ("stopped", "timeout")


async def test_in_idle_mode_running_code_is_use(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path) as (api, clock):
        others = [await api.new(timeout_seconds=seconds) for seconds in (80, 170, 260)]
        session_id = await api.new(timeout_seconds=100, timeout_mode="idle")
        body = {"code": "input()", "allow_stdin": True, "detach": True}
        started = (await api.client.post(f"/v1/sessions/{session_id}/execute", json=body)).json()
        for other in others:
            await live_past(api, clock, 90, other)
        url = f"/v1/sessions/{session_id}"
        assert (await api.client.get(url)).json()["state"] == "running"
        async with asyncio.timeout(SECONDS):
            while (await api.client.post(f"{url}/stdin", json={"value": "x"})).status_code != 204:
                continue
        execution = await api.client.get(f"{url}/executions/{started['execution_id']}", params={"wait": 30})
        assert execution.json()["result"]["status"] == "ok"


async def test_more_time_counts_at_once(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path) as (api, clock):
        other = await api.new(timeout_seconds=140)
        session_id = await api.new(timeout_seconds=100)
        await api.client.post(f"/v1/sessions/{session_id}/timeout", json={"timeout_seconds": 200})
        await live_past(api, clock, 150, other)
        assert (await api.client.get(f"/v1/sessions/{session_id}")).json()["state"] == "running"
        await api.client.post(f"/v1/sessions/{session_id}/timeout", json={"timeout_seconds": 1})
        assert (await ended(api, session_id))["reason"] == "timeout"


async def test_a_guest_that_answers_nothing_is_failed(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    # As long as an emulated guest that is well may take; the silent one's is waited for in real time.
    async with own(settings, tmp_path, health_timeout=10.0) as (api, clock):
        healthy, silent = await api.new(), await api.new()
        live = api.service.sessions.live_session(silent)
        assert live is not None
        os.kill(live.session.machine_pid, signal.SIGSTOP)
        clock.advance(30)
        seen = await ended(api, silent)
        assert (seen["state"], seen["reason"]) == ("failed", "crash")
        assert "did not answer" in seen["message"]
        assert await api.printed(healthy, "print(1)") == "1\n"


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "crash")])
async def test_a_machine_that_dies_is_told_with_its_reason(
    engine: Engine, settings: Settings, tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    async with own(settings, tmp_path) as (api, _):
        session_id = await api.new()
        live = api.service.sessions.live_session(session_id)
        assert live is not None
        execution = asyncio.create_task(api.run(session_id, "while True: pass"))
        async with asyncio.timeout(SECONDS):
            while not live.executions.busy:
                await settled()
        os.kill(live.session.machine_pid, number)
        result = await execution
        assert (result["status"], result["error"]["code"]) == ("cancelled", "session_ended")
        assert reason in result["error"]["message"]
        seen = await ended(api, session_id)
        assert (seen["state"], seen["reason"]) == ("failed", reason)


async def test_without_memory_the_largest_session_goes_before_the_host_does(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path) as (api, clock):
        small, large = await api.new(), await api.new()
        await api.run(large, "data = bytearray(b'x' * 100_000_000)")
        await api.service.sessions.ledger.sample()
        # More than any host has; of this service alone, since the others of the run look at the host's memory too.
        guard = api.service.sessions._guard
        memory = next(resource for resource in guard._resources if resource.name == "memory")
        guard._resources = [replace(memory, reserve=10**15)]
        clock.advance(1)
        seen = await ended(api, large)
        assert (seen["state"], seen["reason"]) == ("failed", "out_of_memory")
        assert (await api.client.get(f"/v1/sessions/{small}")).json()["state"] == "running"


async def test_the_pool_gives_each_machine_once_and_is_refilled(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path, pool={"base": 2}) as (api, _):
        pool = api.service.sessions.pool
        async with asyncio.timeout(SECONDS):
            while pool.ready["base"] < 2:
                await settled()
        sessions = await asyncio.gather(*(api.new(env={"N": str(number)}) for number in range(4)))
        pids = set()
        for number, session_id in enumerate(sessions):
            live = api.service.sessions.live_session(session_id)
            assert live is not None
            pids.add(live.session.machine_pid)
            assert await api.printed(session_id, "import os\nprint(os.environ['N'])") == f"{number}\n"
            assert (await api.run(session_id, "1"))["execution_count"] == 2
        assert len(pids) == 4
        async with asyncio.timeout(SECONDS):
            while pool.ready["base"] < 2:
                await settled()


async def test_a_dead_machine_of_the_pool_is_not_handed_out(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path, pool={"base": 1}) as (api, _):
        pool = api.service.sessions.pool
        async with asyncio.timeout(SECONDS):
            while pool.ready["base"] < 1:
                await settled()
        (ready,) = pool._ready["base"]
        os.kill(ready.held.session.machine_pid, signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            await asyncio.shield(ready.held.ending.error)
        assert pool.ready["base"] == 0
        assert await api.printed(await api.new(), "print(1)") == "1\n"
        # Without anybody having asked for it.
        async with asyncio.timeout(SECONDS):
            while pool.ready["base"] < 1:
                await settled()


async def test_machines_of_the_pool_outlive_silence(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A guest that hears nothing for ten health intervals ends its machine.
    monkeypatch.setattr("interpreter.engine.engine._ORPHANED_SECONDS", 1.0)
    home = own_home(settings, tmp_path / "home")
    own_settings = Settings(home=home, default_template="base", pool={"base": 1}, health_interval=1.0)
    async with serve(own_settings) as api:
        pool = api.service.sessions.pool
        async with asyncio.timeout(SECONDS):
            while pool.ready["base"] < 1:
                await settled()
        (ready,) = pool._ready["base"]
        # No event tells of what must not happen.
        await asyncio.wait({ready.held.ending.error}, timeout=20)
        assert not ready.held.has_ended
        assert Path(f"/proc/{ready.held.session.machine_pid}").exists()
        seen = await api.client.get("/readyz")
        assert (seen.status_code, seen.json()["pool"]) == (200, {"base": 1})


async def test_limits_refuse_with_retry_after_and_the_queue_waits(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    limits = {"max_sessions": 1, "queue_size": 1, "queue_seconds": 30}
    async with own(settings, tmp_path, **limits) as (api, _):
        first = await api.new()
        waiting = asyncio.create_task(api.client.post("/v1/sessions", json={}))
        async with asyncio.timeout(SECONDS):
            while api.service.sessions.admission.waiting == 0:
                await settled()
        refused = await api.client.post("/v1/sessions", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "host_full")
        assert int(refused.headers["retry-after"]) >= 1
        await api.client.delete(f"/v1/sessions/{first}")
        assert (await waiting).status_code == 201


async def test_a_tenant_past_its_limit_is_told_so(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    async with own(settings, tmp_path, max_sessions_per_tenant=1) as (api, _):
        await api.new()
        refused = await api.client.post("/v1/sessions", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "tenant_limit")


async def test_ending_the_service_ends_sessions_and_leaves_no_machine(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    async with own(settings, tmp_path, drain_seconds=0.1) as (api, _):
        live = api.service.sessions.live_session(await api.new())
        assert live is not None
    assert not Path(f"/proc/{live.session.machine_pid}").exists()
    assert (live.record.state, live.record.reason) == ("stopped", "shutdown")
    assert list((tmp_path / "home" / "machines").iterdir()) == []
