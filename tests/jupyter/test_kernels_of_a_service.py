"""A service with a key, as a process of its own, that runs a front end's kernels: refused, killed, started again."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from kernel_client import connected, run
from served import SECONDS
from started_kernel import PROVISIONED

from interpreter import Settings

pytestmark = pytest.mark.machine

NAME = "of-a-service"
KEY = "a-key-of-the-tests"


class Place:
    """Where the service is, or will be, and what it keeps."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        # Bound and not listening: nobody else is given its port, and with this option the service may take it.
        self.held = socket.socket()
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self.port = self.held.getsockname()[1]
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "templates").symlink_to(settings.templates_home)
        if (kept := settings.home / "accelerator.json").exists():
            shutil.copy(kept, self.home)

    @asynccontextmanager
    async def served(self) -> AsyncGenerator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from interpreter.cli import main; main()", "serve", "--port", str(self.port)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "INTERPRETER_HOME": str(self.home), "INTERPRETER_API_KEY": KEY},
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(SECONDS):
                while b" serves on " not in (line := await process.stderr.readline()):
                    assert line, "the service ended"
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.communicate()


@pytest.fixture
def place(settings: Settings, kernelspecs: Path, tmp_path: Path) -> Generator[Place]:
    place = Place(settings, tmp_path)
    document = json.loads((kernelspecs / PROVISIONED / "kernel.json").read_text())
    config = {"template": "base", "url": f"http://127.0.0.1:{place.port}"}
    document["metadata"]["kernel_provisioner"]["config"] = config
    (kernelspecs / NAME).mkdir(exist_ok=True)
    (kernelspecs / NAME / "kernel.json").write_text(json.dumps(document))
    with place.held:
        yield place


async def started() -> tuple[AsyncIOLoopKernelManager, Any]:
    manager = AsyncIOLoopKernelManager(kernel_name=NAME)
    await manager.start_kernel()
    return manager, await connected(manager)


async def test_no_service_and_a_wrong_key_are_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no service answers at"):
        await AsyncIOLoopKernelManager(kernel_name=NAME).start_kernel()
    async with place.served():
        for key in (None, "another-key-of-the-test"):
            with monkeypatch.context() as patch:
                patch.delenv("INTERPRETER_API_KEY", raising=False)
                if key:
                    patch.setenv("INTERPRETER_API_KEY", key)
                with pytest.raises(RuntimeError, match="this service wants a key"):
                    await AsyncIOLoopKernelManager(kernel_name=NAME).start_kernel()


async def test_a_kernel_outlives_its_service_and_is_connected_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERPRETER_API_KEY", KEY)
    async with place.served() as process:
        manager, client = await started()
        before = manager.get_connection_info()
        await run(client, "x = 41")
        process.kill()
        await process.wait()
    async with place.served():
        await client.wait_for_ready(timeout=SECONDS)
        assert await run(client, "x + 1") == "42"
        assert manager.get_connection_info() == before
        client.stop_channels()
        await manager.shutdown_kernel()


async def test_a_kernel_whose_service_is_stopped_for_good_can_be_shut_down(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERPRETER_API_KEY", KEY)
    async with place.served():
        manager, client = await started()
        assert await run(client, "1 + 1") == "2"
    client.stop_channels()
    async with asyncio.timeout(SECONDS):
        await manager.shutdown_kernel()
    assert not manager.has_kernel
