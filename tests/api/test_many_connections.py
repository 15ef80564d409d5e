"""More silent connections than the service has descriptors: it answers others, closes them, and says it once."""

import asyncio
import os
import resource
import socket
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.machine
SECONDS = 60.0
DESCRIPTORS = 1024
SILENT = 1100


@pytest.fixture(autouse=True)
def many_descriptors() -> Generator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(before[1], 8192)), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@asynccontextmanager
async def running(home: Path, log: Path, sessions: int) -> AsyncGenerator[tuple[asyncio.subprocess.Process, int]]:
    """The command itself, with few descriptors, and its port. No machine is started: nothing is probed."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"),
            *(sys.executable, "-c", "from interpreter.cli import main; main()", "serve", "--port", str(port)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env={
                **{name: value for name, value in os.environ.items() if name != "INTERPRETER_API_KEY"},
                "INTERPRETER_HOME": str(home),
                "INTERPRETER_ACCELERATOR": "tcg",
                "INTERPRETER_MAX_SESSIONS": str(sessions),
            },
        )
    try:
        yield process, port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def test_silent_connections_cost_others_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        running(tmp_path / "home", log, sessions=20) as (process, port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client,
    ):
        async with asyncio.timeout(SECONDS):
            while b" serves on " not in log.read_bytes():
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        silent: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for _ in range(SILENT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /")
            silent.append((reader, writer))
        assert (await client.get("/readyz")).json()["status"] == "ready"
        assert (await client.get("/v1/sessions")).status_code == 200
        assert len(list(Path("/proc", str(process.pid), "fd").iterdir())) < DESCRIPTORS
        # All are left, at their deadline at the latest.
        async with asyncio.timeout(SECONDS):
            ended = await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
        assert all(one == b"" or isinstance(one, ConnectionError) for one in ended)
        assert (await client.get("/readyz")).status_code == 200
        for _, writer in silent:
            writer.close()
    assert len(log.read_bytes()) < 10_000
    assert process.returncode == 0


async def test_sessions_that_do_not_fit_are_refused_at_the_start(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with running(tmp_path / "home", log, sessions=200) as (process, _):
        assert await asyncio.wait_for(process.wait(), SECONDS) == 3
    assert "200 sessions do not fit into the 1024 file descriptors" in log.read_text()
