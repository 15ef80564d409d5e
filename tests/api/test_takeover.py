"""The service killed, and started again: living sessions go on with their variables, no second is counted twice."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from channels_client import connect
from served import SECONDS, own_home

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine


@asynccontextmanager
async def serving(
    home: Path, program: str = "from interpreter.cli import main; main()", **more: str
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """`interpreter serve` as a process of its own, on a free port; killed at the end when it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "serve", "--port", "0"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "INTERPRETER_HOME": str(home), "INTERPRETER_DEFAULT_TEMPLATE": "base", **more},
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(SECONDS):
            while " serves on " not in (line := (await process.stderr.readline()).decode()):
                assert line, "the service ended"
        url = next(word for word in line.split() if word.startswith("http"))
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            yield process, client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(client: httpx.AsyncClient, session_id: str, code: str, **more: Any) -> dict[str, Any]:
    answer = await client.post(f"/v1/sessions/{session_id}/execute", json={"code": code, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def new(client: httpx.AsyncClient, **wanted: Any) -> str:
    answer = await client.post("/v1/sessions", json=wanted)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


async def test_after_a_kill_a_front_end_finds_its_kernel_again(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    body = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "base"}}
    async with serving(home) as (process, client):
        session = (await client.post("/api/sessions", json=body)).json()
        kernel = session["kernel"]["id"]
        port = client.base_url.port
        async with connect(port, kernel, "tab") as channels:
            await channels.execute("x = 41")
            process.send_signal(signal.SIGKILL)
            with pytest.raises(websockets.ConnectionClosed):
                await channels.receive()
        await process.wait()
    async with serving(home) as (_, client):
        assert [one["id"] for one in (await client.get("/api/kernels")).json()] == [kernel]
        assert [one["id"] for one in (await client.get("/api/sessions")).json()] == [session["id"]]
        async with connect(client.base_url.port, kernel, "tab") as channels:
            assert await channels.printed("print(x + 1)") == "42\n"


def machines(home: Path) -> list[str]:
    return [folder.name for folder in (home / "machines").iterdir()]


async def test_after_a_kill_sessions_go_on_and_nothing_is_counted_twice(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home, INTERPRETER_POOL='{"base": 1}') as (process, client):
        living = await new(client, env={"KEPT": "yes"}, name="living")
        dead = await new(client)
        await client.post(f"/v1/sessions/{living}/contexts", json={"context_id": "two"})
        await run(client, living, "x = 41")
        await run(client, living, "y = 7", context_id="two")
        await client.put(f"/v1/sessions/{living}/files/content", params={"path": "file"}, content=b"stays")
        body = {"code": "while True: pass", "detach": True, "context_id": "two"}
        lost = (await client.post(f"/v1/sessions/{living}/execute", json=body)).json()["execution_id"]
        pid = int((await run(client, dead, "import os\nos.getpid()"))["outputs"][0]["data"]["text/plain"])
        assert pid
        process.send_signal(signal.SIGKILL)
        await process.wait()
    # One machine dies while no service is there.
    (machine_of_dead,) = [pid for name, pid in qemu_pids(home).items() if name == record_of(home, dead)["machine"]]
    os.kill(machine_of_dead, signal.SIGKILL)
    async with serving(home) as (process, client):
        assert (await run(client, living, "x + 1"))["outputs"][0]["data"]["text/plain"] == "42"
        assert (await client.post(f"/v1/sessions/{living}/interrupt", json={"context_id": "two"})).status_code == 204
        result = await run(client, living, "import os\nprint(y, os.environ['KEPT'])", context_id="two")
        assert result["outputs"][0]["text"] == "7 yes\n"
        got = await client.get(f"/v1/sessions/{living}/files/content", params={"path": "file"})
        assert got.content == b"stays"
        seen = (await client.get(f"/v1/sessions/{dead}")).json()
        assert (seen["state"], seen["reason"]) == ("failed", "crash")
        execution = (await client.get(f"/v1/sessions/{living}/executions/{lost}")).json()
        assert (execution["state"], execution["result"]["status"]) == ("done", "lost")
        # Those of the pool and of the dead session are gone; the living one's is there.
        assert len(machines(home)) == 1
        series = (await client.get(f"/v1/sessions/{living}/usage")).json()["series"]
        assert len(series) >= 2
        for before, after in pairwise(series):
            assert after["second"] - after["seconds"] == before["second"]
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0
    assert machines(home) == []
    assert qemu_pids(home) == {}


async def test_after_a_kill_sessions_with_dead_kernels_are_there_with_their_files(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home) as (process, client):
        without_main, without_two = await new(client), await new(client)
        for session_id, context in ((without_main, "main"), (without_two, "two")):
            url = f"/v1/sessions/{session_id}"
            await client.put(f"{url}/files/content", params={"path": "file"}, content=b"stays")
            if context != "main":
                await client.post(f"{url}/contexts", json={"context_id": context})
            died = await run(client, session_id, "import os\nos._exit(3)", context_id=context)
            assert died["status"] == "kernel_died"
        await run(client, without_two, "x = 41")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with serving(home) as (_, client):
        for session_id, context in ((without_main, "main"), (without_two, "two")):
            url = f"/v1/sessions/{session_id}"
            got = await client.get(f"{url}/files/content", params={"path": "file"})
            assert (got.status_code, got.content) == (200, b"stays")
            dead = await run(client, session_id, "1", context_id=context)
            assert (dead["status"], dead["error"]["code"]) == ("kernel_died", "kernel_died")
            restarted = await client.post(f"{url}/restart", json={"context_id": context})
            assert restarted.status_code == 204, restarted.text
            result = await run(client, session_id, "20 + 22", context_id=context)
            assert result["outputs"][0]["data"]["text/plain"] == "42"
        assert (await run(client, without_two, "x + 1"))["outputs"][0]["data"]["text/plain"] == "42"


async def test_sigterm_lets_commands_and_transfers_end(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home, INTERPRETER_DRAIN_SECONDS="60") as (process, client):
        url = f"/v1/sessions/{await new(client)}"
        stopping, begun = asyncio.Event(), asyncio.Event()

        async def pieces() -> AsyncGenerator[bytes]:
            yield b"first "
            begun.set()
            await stopping.wait()
            yield b"last"

        command = {"command": "until [ -e file ]; do sleep 0.1; done; cat file"}
        running = asyncio.create_task(client.post(f"{url}/commands", json=command))
        upload = client.put(f"{url}/files/content", params={"path": "file"}, content=pieces())
        uploading = asyncio.create_task(upload)
        await begun.wait()
        async with asyncio.timeout(SECONDS):
            while not (await client.get(f"{url}/commands")).json()["commands"]:
                continue
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            while (await client.post("/v1/sessions", json={})).json().get("error", {}).get("code") != "draining":
                continue
        stopping.set()
        assert (await uploading).status_code == 201
        assert (await running).json()["stdout"] == "first last"
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0


async def test_sigterm_lets_a_running_cell_end_and_refuses_new_work(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home, INTERPRETER_DRAIN_SECONDS="60") as (process, client):
        session_id = await new(client)
        body = {"code": "print(input())", "allow_stdin": True}
        running = asyncio.create_task(client.post(f"/v1/sessions/{session_id}/execute", json=body))
        url = f"/v1/sessions/{session_id}"
        async with asyncio.timeout(SECONDS):
            while not (await client.get(f"{url}/executions")).json()["executions"]:
                continue
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            while (
                refused := await client.post(f"{url}/execute", json={"code": "1", "detach": True})
            ).status_code == 202:
                continue
            while (await client.post(f"{url}/stdin", json={"value": "ended"})).status_code != 204:
                continue
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert (await running).json()["outputs"][0]["text"] == "ended\n"
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0


async def test_a_second_service_on_the_same_folder_is_refused(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home):
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from interpreter.cli import main; main()", "serve", "--port", "0"),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "INTERPRETER_HOME": str(home)},
        )
        _, err = await second.communicate()
        assert second.returncode == 3
        assert b"another service runs" in err
        assert b"Traceback" not in err


def record_of(home: Path, session_id: str) -> dict[str, Any]:
    import json
    import sqlite3

    with sqlite3.connect(home / "service.sqlite") as connection:
        (text,) = connection.execute("SELECT record FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return json.loads(text)


def qemu_pids(home: Path) -> dict[str, int]:
    """The machines of a state folder that run, by name."""
    names = {f"interpreter-{folder.name}" for folder in (home / "machines").iterdir()}
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "qemu" in words[0] and len(words) > 2 and words[2].split(",")[0] in names:
            found[words[2].split(",")[0]] = int(folder.name)
    return found
