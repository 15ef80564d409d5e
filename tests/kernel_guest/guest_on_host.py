"""The product's own host side, connected to an agent that runs on this host (see `host_agent`)."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from interpreter.engine.kernel import Kernel as EngineKernel
from interpreter.engine.renewal import Renewal
from interpreter.errors import InterpreterError
from interpreter.kernel.channels import MAIN
from interpreter.kernel.connection import KernelConnection, connect_kernel
from interpreter.kernel.control import AgentControl, AgentEvent, serve_control
from interpreter.kernel.execution import Execution, ExecutionOptions, OnInput
from interpreter.kernel.outputs import Result

SECONDS = 60.0
"""Nothing here may take so long; a test that waits in vain fails by it."""
_ROOT = Path(__file__).parents[2]


class Guest:
    """One agent: its control stream, what it told, and a way to connect to it."""

    def __init__(
        self,
        folder: Path,
        control: AgentControl,
        events: "asyncio.Queue[AgentEvent]",
        ended: "asyncio.Future[InterpreterError]",
    ) -> None:
        self.home = folder / "home"
        self.control = control
        self.events = events
        self.ended = ended
        self.renewal = Renewal("guest")
        self._socket = folder / "agent.sock"

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        # Blocking: with a full backlog a non-blocking connect fails with EAGAIN, and asyncio takes that for connected.
        connecting = socket.socket(socket.AF_UNIX)
        await asyncio.to_thread(connecting.connect, str(self._socket))
        return await asyncio.open_unix_connection(sock=connecting)

    async def call(self, operation: str, **arguments: object) -> dict[str, Any]:
        return await self.control.call(operation, timeout=SECONDS, **arguments)

    async def renew(self, **environment: str) -> Renewal:
        self.renewal = Renewal("guest", environment)
        await self.call("renew", **self.renewal.arguments())
        return self.renewal

    async def end(self) -> InterpreterError:
        """Wait until the control stream ends; returns why."""
        async with asyncio.timeout(SECONDS):
            return await asyncio.shield(self.ended)

    async def event(self, name: str) -> AgentEvent:
        """The next event of that name."""
        async with asyncio.timeout(SECONDS):
            while (event := await self.events.get()).get("event") != name:
                continue
        return event

    @asynccontextmanager
    async def kernel(self, context: str = MAIN) -> AsyncGenerator["Kernel"]:
        key, session = self.renewal.key, self.renewal.session
        async with connect_kernel(self.connect, key=key, session=session, context=context) as connection:
            yield Kernel(self, connection)


class Kernel:
    """One client of the guest's kernel."""

    def __init__(self, guest: Guest, connection: KernelConnection) -> None:
        self.guest = guest
        self.connection = connection
        self.is_ending = EngineKernel("guest", MAIN, guest.control, connection).is_ending

    async def interrupt(self) -> None:
        await self.guest.call("interrupt")

    async def restart(self) -> None:
        await self.guest.call("restart")
        self.connection.kernel_restarted()

    def execute(self, code: str, *, on_input: OnInput | None = None, store_history: bool = True) -> Execution:
        options = ExecutionOptions(on_input=on_input, store_history=store_history)
        return Execution(self.connection, self, code, options)

    async def run(self, code: str) -> Result:
        async with asyncio.timeout(SECONDS):
            return await self.execute(code)

    async def printed(self, code: str) -> str:
        result = await self.run(code)
        assert result.status == "ok", result.outputs
        return result.stdout


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@asynccontextmanager
async def start_guest(*arguments: str) -> AsyncGenerator[Guest]:
    """An agent that has warmed up and dialled the host, not renewed yet. ``arguments`` as `host_agent` has them."""
    # Not pytest's own folder: a unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        dialled: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        dialled = asyncio.get_running_loop().create_future()
        server = await asyncio.start_unix_server(
            lambda reader, writer: dialled.set_result((reader, writer)), folder / "control.sock"
        )
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(Path(__file__).with_name("host_agent.py")),
                str(folder),
                *arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )
        try:
            await _either(dialled, process, folder / "log")
            events: asyncio.Queue[AgentEvent] = asyncio.Queue()
            ended: asyncio.Future[InterpreterError] = asyncio.get_running_loop().create_future()
            async with serve_control(*dialled.result(), events.put_nowait, ended.set_result) as control:
                yield Guest(folder, control, events, ended)
            async with asyncio.timeout(SECONDS):
                await process.wait()
            complaints = (folder / "log").read_text()
            assert "Traceback" not in complaints, complaints
        finally:
            server.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _either(dialled: asyncio.Future[Any], process: asyncio.subprocess.Process, log: Path) -> None:
    ended = asyncio.create_task(process.wait())
    await asyncio.wait({dialled, ended}, timeout=SECONDS, return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    assert dialled.done(), f"the agent did not come up: {log.read_text()}"
