"""A JupyterLab of the tests' own: an unmodified one, whose kernels run behind a gateway."""

import asyncio
import json
import os
import re
import socket
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_TO_START = 120
SECONDS_TO_END = 20
TOKEN = "lab"
# What is announced when it serves; the port is the next free one when somebody was faster.
_SERVES = re.compile(rb"(http://127\.0\.0\.1:\d+)/lab")


@dataclass(frozen=True)
class LabServer:
    """Where it is served, and the folder that its file browser shows."""

    url: str
    root: Path

    @property
    def page(self) -> str:
        return f"{self.url}/lab?token={TOKEN}"


@asynccontextmanager
async def jupyter_lab(gateway: str, folder: Path) -> AsyncGenerator[LabServer]:
    """Start it with all that it reads and writes in ``folder``, and end it."""
    root = folder / "notebooks"
    root.mkdir()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jupyterlab", f"--gateway-url={gateway}", "--allow-root", "--no-browser"),
        *_options(root),
        env=_environment(folder),
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stdin=asyncio.subprocess.DEVNULL,
    )
    assert process.stderr is not None
    said = deque[bytes](maxlen=50)
    try:
        async with asyncio.timeout(SECONDS_TO_START):
            url = await _wait_until_it_serves(process.stderr, said)
        reading = asyncio.create_task(_read_on(process.stderr, said))
        try:
            yield LabServer(url, root)
        finally:
            reading.cancel()
    except TimeoutError:
        raise AssertionError(f"JupyterLab does not serve: {b''.join(said).decode(errors='replace')}") from None
    finally:
        await _end(process)


def _options(root: Path) -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={root}",
        f"--IdentityProvider.token={TOKEN}",
        "--ServerApp.terminals_enabled=False",
        # Nothing here asks the internet for anything.
        "--LabApp.extension_manager=readonly",
        # The page's application as window.jupyterapp: what it waits for, tests can wait for.
        "--LabApp.expose_app_in_browser=True",
    ]


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "KERNEL_"))}
    settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab"
    _write(settings / "apputils-extension" / "notification", {"fetchNews": "false", "checkForUpdates": False})
    # An editor that completes brackets and quotes is no typewriter.
    _write(
        settings / "notebook-extension" / "tracker",
        {"codeCellConfig": {"autoClosingBrackets": False}, "kernelShutdown": True},
    )
    places = {
        "HOME": "home",
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
    }
    return {**kept, **{name: str(folder / place) for name, place in places.items()}}


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True)
    path.with_suffix(".jupyterlab-settings").write_text(json.dumps(value))


async def _wait_until_it_serves(stream: asyncio.StreamReader, said: deque[bytes]) -> str:
    async for line in stream:
        said.append(line)
        if found := _SERVES.search(line):
            return found[1].decode()
    raise AssertionError(f"JupyterLab ended: {b''.join(said).decode(errors='replace')}")


async def _read_on(stream: asyncio.StreamReader, said: deque[bytes]) -> None:
    # Else the pipe is full one day, and it stands still.
    async for line in stream:
        said.append(line)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            async with asyncio.timeout(SECONDS_TO_END):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
