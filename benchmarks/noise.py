"""A noisy client in a process of its own: ``python -m benchmarks.noise NAME URL SESSION SHARE``.

It says "ready" when it has prepared, begins to make its noise with each line "on", ends it with each line "off", and
says "off" when it is quiet again. SESSION may be several, with commas; SHARE is what a burning guest burns.
"""

import asyncio
import contextlib
import os
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx

from benchmarks import guest_noise

GUEST_SECONDS: Final = 2
"""How long a cell of noise runs: the noise ends this much late."""
SILENT: Final = int(os.environ.get("BENCH_CONNECTIONS", "1000"))
UPLOAD: Final = 50_000_000
FILES: Final = 2000
EXECUTIONS: Final = 10


class Caller:
    """The API, called on behalf of one session."""

    def __init__(self, client: httpx.AsyncClient, session_id: str) -> None:
        self.client = client
        self.session_id = session_id
        self.path = f"/v1/sessions/{session_id}"

    async def run(self, code: str, **names: object) -> None:
        """Run code of `guest_noise`; whatever becomes of it is the service's affair."""
        values = "".join(f"{name} = {value!r}\n" for name, value in {"SECONDS": GUEST_SECONDS, **names}.items())
        with contextlib.suppress(httpx.HTTPError):
            answer = await self.client.post(f"{self.path}/execute", json={"code": values + code})
            if answer.is_error:
                # Refused: a service that is under pressure may.
                await asyncio.sleep(0.1)


Step = Callable[[Caller], Awaitable[None]]


@dataclass(frozen=True)
class Noise:
    """``act`` is done again and again, ``at_once`` times, after ``prepare``; the machine is of ``template``."""

    act: Step
    prepare: Step | None = None
    template: str = "base"
    at_once: int = 1


def cell(code: str) -> Step:
    """Run that in the guest."""
    return lambda caller: caller.run(code)


async def upload(caller: Caller) -> None:
    """One file, in pieces."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(0, UPLOAD, 250_000):
            yield bytes(250_000)

    await caller.client.put(f"{caller.path}/files/content?path=data", content=pieces())


async def download(caller: Caller) -> None:
    """The file that was uploaded."""
    async with caller.client.stream("GET", f"{caller.path}/files/content?path=data") as answer:
        async for _ in answer.aiter_raw():
            pass


async def prepare_listings(caller: Caller) -> None:
    """Many files, and executions with large results."""
    await caller.run(f"import pathlib\nfor n in range({FILES}): pathlib.Path(f'f{{n}}').touch()")
    for _ in range(EXECUTIONS):
        await caller.run("print('x' * 9_000_000)")


async def list_everything(caller: Caller) -> None:
    """Files and executions."""
    await caller.client.get(f"{caller.path}/files?path=.&limit=1000")
    await caller.client.get(f"{caller.path}/executions")


async def be_silent(caller: Caller) -> None:
    """Connections whose requests never end; those that the service closes are opened anew."""
    url = urlsplit(str(caller.client.base_url))

    async def one() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
                try:
                    writer.write(b"GET / HTTP/1.1\r\n")
                    await reader.read()
                finally:
                    writer.transport.abort()
            # No flood of connections: that would be another noise.
            await asyncio.sleep(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(SILENT):
            group.create_task(one())


async def events(caller: Caller) -> None:
    """A session whose root tells of kernels that die, until the service has had enough of it."""
    answer = await caller.client.post("/v1/sessions", json={"template": "rooted"})
    if answer.is_error:
        await asyncio.sleep(0.1)
        return
    one = Caller(caller.client, answer.json()["id"])
    await one.run(guest_noise.AS_ROOT, CODE=f"SECONDS = {GUEST_SECONDS}\n{guest_noise.EVENTS}")
    await caller.client.delete(one.path)


NOISES: Final[dict[str, Noise]] = {
    "json_of_numbers": Noise(cell(guest_noise.DISPLAYS), cell(guest_noise.NUMBERS)),
    "json_of_objects": Noise(cell(guest_noise.DISPLAYS), cell(guest_noise.OBJECTS)),
    "prints": Noise(cell(guest_noise.PRINTS)),
    "small_packets": Noise(cell(guest_noise.DIALS)),
    "agent_events": Noise(events, template="rooted"),
    "uploads": Noise(upload, at_once=2),
    "downloads": Noise(download, upload, at_once=2),
    "listings": Noise(list_everything, prepare_listings, at_once=4),
    "silent_connections": Noise(be_silent),
}


async def main() -> None:
    """Be noisy when told to."""
    name, url, sessions, share = sys.argv[1:]
    burning = Noise(lambda caller: caller.run(guest_noise.BURN, SHARE=float(share)))
    noise = burning if name == "burn" else NOISES[name]
    # Another computer's processors would be busy with this: here it gives way.
    os.nice(19)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        callers = [Caller(client, session_id) for session_id in sessions.split(",")]
        if noise.prepare is not None:
            for caller in callers:
                await noise.prepare(caller)
        print("ready", flush=True)
        while await lines.readline():
            stopping = asyncio.Event()
            tasks = [asyncio.create_task(keep_on(noise, one, stopping)) for one in callers * noise.at_once]
            await lines.readline()
            stopping.set()
            # A cell ends by itself, or it would go on in the guest; what else takes longer is given up.
            _, running = await asyncio.wait(tasks, timeout=GUEST_SECONDS + 5)
            for task in running:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            print("off", flush=True)


async def keep_on(noise: Noise, caller: Caller, stopping: asyncio.Event) -> None:
    """Make noise until told to stop."""
    while not stopping.is_set():
        with contextlib.suppress(httpx.HTTPError):
            await noise.act(caller)
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main())
