"""The host's disk: a session that fills it gets an error of its own, others go on; one that takes too much is ended."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from served import SECONDS, Api, own_home, serve

from interpreter import Engine, Settings

DISK = 96 * 1024 * 1024
SYNCED = """
import os
def written(name, size):
    try:
        with open(name, 'wb') as file:
            for _ in range(size // 1_000_000):
                file.write(os.urandom(1_000_000))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        print(type(error).__name__, error.errno)
    else:
        print('written')
"""


@asynccontextmanager
async def serving_on_a_small_disk(engine: Engine, home: Path) -> AsyncGenerator[httpx.AsyncClient]:
    """`interpreter serve` with a state folder of 96 MB: a file system that only it and its machines see."""
    home.mkdir()
    rights = ("--cap-add", "ALL") if os.geteuid() == 0 else ()
    process = await asyncio.create_subprocess_exec(
        *("bwrap", "--dev-bind", "/", "/", "--size", str(DISK), "--tmpfs", str(home), "--die-with-parent", *rights),
        *("--symlink", str(engine.settings.templates_home), str(home / "templates"), "--"),
        *(sys.executable, "-c", "from interpreter.cli import main; main()", "serve", "--port", "0"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "INTERPRETER_HOME": str(home),
            "INTERPRETER_ACCELERATOR": engine.accelerator.accelerator,
            "INTERPRETER_DEFAULT_TEMPLATE": "base",
            "INTERPRETER_DISK_RESERVE_MB": "0",
            "INTERPRETER_SESSION_DISK_MB": "0",
        },
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(SECONDS):
            while " serves on " not in (line := (await process.stderr.readline()).decode()):
                assert line, "the service ended"
        # What it logs is read all the time: it would wait for a reader.
        logging = asyncio.create_task(process.stderr.read())
        url = next(word for word in line.split() if word.startswith("http"))
        async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
            try:
                yield client
            finally:
                # They would outlive their service.
                for session in (await client.get("/v1/sessions", params={"state": "running"})).json()["sessions"]:
                    await client.delete(f"/v1/sessions/{session['id']}")
                logging.cancel()
    finally:
        process.kill()
        await process.wait()


async def printed(client: httpx.AsyncClient, session_id: str, code: str) -> str:
    answer = await client.post(f"/v1/sessions/{session_id}/execute", json={"code": code})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "ok", answer.json()
    return "".join(output["text"] for output in answer.json()["outputs"] if output["type"] == "stream").strip()


async def test_a_session_that_fills_the_hosts_disk_gets_the_error_and_others_go_on(
    engine: Engine, tmp_path: Path
) -> None:
    async with serving_on_a_small_disk(engine, tmp_path / "home") as client:
        filler, quiet = [(await client.post("/v1/sessions", json={})).json()["id"] for _ in range(2)]
        for session in (filler, quiet):
            assert await printed(client, session, SYNCED + "written('before', 2_000_000)") == "written"
        assert await printed(client, filler, "written('all', 150_000_000)") == "OSError 5"
        # The service's database has no room either. What the quiet session writes cannot be kept; it gets to know.
        assert await printed(client, quiet, "written('while full', 4_000_000)") in {"OSError 5", "written"}
        assert await printed(client, quiet, "print(1 + 1)") == "2"
        assert (await client.get(f"/v1/sessions/{quiet}")).json()["state"] == "running"
        assert (await client.get("/healthz")).status_code == 200
        refused = await client.post("/v1/sessions", json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "disk_full")
        # Its end gives everything back.
        await client.delete(f"/v1/sessions/{filler}")
        assert await printed(client, quiet, "written('after', 4_000_000)") == "written"
        assert (await client.post("/v1/sessions", json={})).status_code == 201


async def test_a_session_whose_disk_takes_more_than_it_may_is_ended_and_no_other(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    own = settings.model_copy(
        update={"home": own_home(settings, tmp_path / "home"), "default_template": "base", "disk_limit_mb": 64}
    )
    async with serve(own) as api:
        greedy, quiet = await api.new(), await api.new()
        assert await api.printed(quiet, SYNCED + "written('some', 8_000_000)") == "written\n"
        result = await api.run(greedy, SYNCED + "written('much', 200_000_000)\nwhile True: pass")
        assert result["status"] == "cancelled"
        # Answers when it is over, and changes nothing of why.
        ended = (await api.client.delete(f"/v1/sessions/{greedy}")).json()
        assert (ended["state"], ended["reason"]) == ("failed", "out_of_disk")
        assert "of 64 that it may take" in ended["message"]
        assert await api.printed(quiet, "print(1)") == "1\n"
        assert 8_000_000 < await disk_in_metrics(api) < 64 * 1024 * 1024


async def disk_in_metrics(api: Api) -> float:
    lines = (await api.client.get("/metrics")).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("interpreter_sessions_disk_bytes{")))
