"""``make bench-service``: the service in a process of its own, measured over HTTP; writes benchmarks/service.json."""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import structlog

from benchmarks.report import Figures, console, show, write
from interpreter import Accelerator, Engine, Session, build_template, load_settings
from interpreter.sessions.resources import available_memory

RESULTS = Path(__file__).with_name("service.json")
CREATES = 12
POOL = 6
EXECUTES = 150
LISTS = 300
TRANSFER = 90_000_000
TRANSFERS = 9
PIECE = 256 * 1024
IDLE_COUNTS = (0, 10, 30)
IDLE_SECONDS = 15
HELD = int(os.environ.get("BENCH_HELD", "100"))


class Serving:
    """`interpreter serve` as a process, and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, client: httpx.AsyncClient) -> None:
        self.process = process
        self.client = client

    async def new(self, **wanted: str) -> str:
        """A new session."""
        answer = await self.client.post("/v1/sessions", json={"timeout_seconds": 28_800, **wanted})
        answer.raise_for_status()
        return answer.json()["id"]

    async def stop(self, session_id: str) -> None:
        """End one."""
        (await self.client.delete(f"/v1/sessions/{session_id}")).raise_for_status()

    def usage(self) -> tuple[float, float]:
        """Seconds of processor time so far, and resident memory in MB that is the process's own."""
        pid = self.process.pid
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        status = Path(f"/proc/{pid}/status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
        return seconds, memory / 1000


@asynccontextmanager
async def serving(home: Path, **more: str) -> AsyncGenerator[Serving]:
    """A service on a free port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from interpreter.cli import main; main()", "serve", "--port", "0"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "INTERPRETER_HOME": str(home), **more},
    )
    reading: asyncio.Task[None] | None = None
    try:
        assert process.stderr is not None
        while " serves on " not in (line := (await process.stderr.readline()).decode()):
            assert line, "the service ended"
        # What it logs is read, or it would wait for that.
        reading = asyncio.create_task(_read_away(process.stderr))
        url = next(word for word in line.split() if word.startswith("http"))
        async with httpx.AsyncClient(base_url=url, timeout=300) as client:
            yield Serving(process, client)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 60)
        except TimeoutError:
            process.kill()
        if reading is not None:
            reading.cancel()


async def _read_away(stream: asyncio.StreamReader) -> None:
    while await stream.read(1 << 20):
        pass


@contextmanager
def templates_of(settings_home: Path) -> Generator[Path]:
    """A state folder of its own for a service, with the templates of another."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "templates").symlink_to(settings_home / "templates")
        yield home


async def measure(settings_home: Path, template: str, engine: Engine) -> Figures:
    """All figures: times in ms unless their name says otherwise."""
    figures: Figures = {}
    with templates_of(settings_home) as home:
        wanted = {"INTERPRETER_DEFAULT_TEMPLATE": template, "INTERPRETER_MAX_SESSIONS": "1000"}
        wanted["INTERPRETER_MAX_SESSIONS_PER_TENANT"] = "1000"
        wanted["INTERPRETER_MAX_CPUS"] = "1000"
        async with serving(home, **wanted) as service, engine.session(template=template) as session:
            await creates(service, "create", CREATES, figures)
            await executes(service, session, figures)
            await timed("list", lambda: service.client.get("/v1/sessions"), LISTS, figures)
            await transfers(service, session, figures)
        async with serving(home, **wanted) as service:
            await idle(service, figures)
        pool = {"INTERPRETER_POOL": json.dumps({template: POOL})}
        async with serving(home, **wanted, **pool) as service:
            while (await service.client.get("/readyz")).json()["pool"][template] < POOL:  # noqa: ASYNC110  (asked over HTTP)
                await asyncio.sleep(0.5)
            # As many as are ready: the pool is refilled beside, which a pause between callers leaves room for.
            await creates(service, "create_pool", POOL, figures)
    return figures


async def timed(name: str, work: Callable[[], Awaitable[object]], rounds: int, figures: Figures) -> None:
    """p50, p99 and requests per second of one thing done again and again."""
    times: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        times.append(time.perf_counter() - began)
    note(name, times, figures)


def note(name: str, times: list[float], figures: Figures) -> None:
    """Put p50, p99 and the rate among the figures."""
    ordered = sorted(times)
    figures[f"{name}_p50_ms"] = statistics.median(ordered) * 1000
    figures[f"{name}_p99_ms"] = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000
    figures[f"{name}_per_second"] = len(ordered) / sum(ordered)


async def creates(service: Serving, name: str, count: int, figures: Figures) -> None:
    """Sessions made one after the other, then stopped."""
    made: list[str] = []

    async def one() -> None:
        made.append(await service.new())

    await timed(name, one, count, figures)
    await asyncio.gather(*(service.stop(session_id) for session_id in made))


async def executes(service: Serving, session: Session, figures: Figures) -> None:
    """`1+1` over REST and through the engine, in turns, each in a machine of its own."""
    session_id = await service.new()
    body = json.dumps({"code": "1+1"}).encode()
    over_rest: list[float] = []
    direct: list[float] = []
    async with plain_http(service) as http:
        for number in range(EXECUTES + 20):
            began = time.perf_counter()
            await http.request("POST", f"/v1/sessions/{session_id}/execute", body)
            middle = time.perf_counter()
            await session.execute("1+1")
            ended = time.perf_counter()
            # The first ones warm both machines up.
            if number >= 20:
                over_rest.append(middle - began)
                direct.append(ended - middle)
    note("execute", over_rest, figures)
    figures["engine_round_trip_p50_ms"] = statistics.median(direct) * 1000
    figures["execute_extra_ms"] = figures["execute_p50_ms"] - figures["engine_round_trip_p50_ms"]
    await service.stop(session_id)


class PlainHttp:
    """HTTP/1.1 on one connection with nothing around it: what is measured is the service, not a client's library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self, method: str, path: str, body: bytes = b"", kind: str = "application/json") -> bytes:
        """The body of the answer, which must be good and of known length."""
        about = f"Host: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{about}"
        self._writer.write(head.encode())
        # In pieces, as programs send files: a body written at once is copied by the event loop as it goes out.
        for start in range(0, len(body), PIECE):
            self._writer.write(body[start : start + PIECE])
            await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        assert head.startswith(("http/1.1 200", "http/1.1 201")), head
        length = next(line for line in head.splitlines() if line.startswith("content-length:"))
        return await self._reader.readexactly(int(length.split(":")[1]))


@asynccontextmanager
async def plain_http(service: Serving) -> AsyncGenerator[PlainHttp]:
    """One connection to the service."""
    url = service.client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=4 * 1024 * 1024)
    try:
        yield PlainHttp(reader, writer)
    finally:
        writer.close()


async def transfers(service: Serving, session: Session, figures: Figures) -> None:
    """90 MB up and down over REST and through the engine's own stream into a file, in turns."""
    session_id = await service.new()
    url = f"/v1/sessions/{session_id}/files/content?path=data"
    content = os.urandom(TRANSFER)
    times: dict[str, list[float]] = {name: [] for name in ("up", "up_stream", "down", "down_stream")}

    async def clocked(name: str, work: Awaitable[Any]) -> Any:
        began = time.perf_counter()
        result = await work
        times[name].append(time.perf_counter() - began)
        return result

    async with plain_http(service) as http:
        # The first time each machine's memory is touched, which is no matter of the way there.
        await http.request("PUT", url, content, "application/octet-stream")
        await session.upload(content, "data")
        for _ in range(TRANSFERS):
            await clocked("up", http.request("PUT", url, content, "application/octet-stream"))
            await clocked("up_stream", session.upload(content, "data"))
            assert await clocked("down", http.request("GET", url)) == content
            assert await clocked("down_stream", session.download("data")) == content
    await service.stop(session_id)
    for name, values in times.items():
        figures[f"transfer_{name}_s"] = statistics.median(values)
    figures["upload_ratio"] = figures["transfer_up_s"] / figures["transfer_up_stream_s"]
    figures["download_ratio"] = figures["transfer_down_s"] / figures["transfer_down_stream_s"]


async def idle(service: Serving, figures: Figures) -> None:
    """The service's own memory and CPU with idle sessions, and how many of them the host holds."""
    made: list[str] = []
    free = available_memory()
    for count in IDLE_COUNTS:
        while len(made) < count:
            made.append(await service.new())
        await asyncio.sleep(2)
        began, _ = service.usage()
        await asyncio.sleep(IDLE_SECONDS)
        ended, memory = service.usage()
        figures[f"service_cpu_percent_{count}_idle"] = (ended - began) / IDLE_SECONDS * 100
        figures[f"service_memory_mb_{count}_idle"] = memory
    while len(made) < HELD:
        answer = await service.client.post("/v1/sessions", json={"timeout_seconds": 28_800})
        if answer.status_code == 503:
            break
        answer.raise_for_status()
        made.append(answer.json()["id"])
    figures["idle_sessions_held"] = len(made)
    figures["host_memory_per_session_mb"] = (free - available_memory()) / len(made) / 1e6
    body = {"code": "print(1)"}
    answers = [await service.client.post(f"/v1/sessions/{one}/execute", json=body) for one in (made[0], made[-1])]
    assert all(answer.json()["status"] == "ok" for answer in answers)
    for start in range(0, len(made), 10):
        await asyncio.gather(*(service.stop(one) for one in made[start : start + 10]))


async def main() -> None:
    """Measure and tell."""
    settings = load_settings()
    template = os.environ.get("BENCH_TEMPLATE", "python-data")
    async with Engine(settings) as engine:
        accelerator = Accelerator(engine.accelerator.accelerator)
        with console.status("measuring the service") as status:
            await build_template(settings, template, accelerator, status.update)
            figures = await measure(settings.home, template, engine)
    wanted = {
        "create_pool_p50_ms": "< 20",
        "execute_extra_ms": "<= 3",
        "upload_ratio": "<= 1.2",
        "download_ratio": "<= 1.2",
        "idle_sessions_held": ">= 100",
    }
    show(figures, wanted)
    write(RESULTS, template, accelerator, figures)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    asyncio.run(main())
