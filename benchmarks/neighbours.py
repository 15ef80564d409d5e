"""``make bench-neighbours``: what one session costs another, for each kind of noise; writes benchmarks/neighbours.json.

A service in a process of its own (`interpreter serve`), a quiet session that is asked for ``1+1`` one after the other,
and beside it in turns: nothing, the noise, and a guest that burns as much of a processor as the noisy one did but says
nothing (the control: on few processors a busy guest is felt whatever the service does). Ratios are medians over the
turns, each within its own turn, so that what else the computer does cancels out.

Memory is the anonymous memory of the service's process and of all that it started but for QEMU and its jail, shared
pages counted by parts (``Pss_Anon``): its peak while the noise lasts, above what it was with both sessions idle.

Chains of descriptors that are longer than any driver makes them are not among the noises: no program in a guest can
have them made. The tests of the device do it.

``BENCH_NOISES`` chooses some (names, with commas; ``busy_8``: eight guests that burn their processors),
``BENCH_TURNS`` and ``BENCH_SECONDS`` how long. It ends with status 1 when a bound did not hold, unless
``BENCH_ONLY_REPORT`` is set.
"""

import asyncio
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import structlog

from benchmarks.measure import cpu_seconds
from benchmarks.noise import NOISES
from benchmarks.report import Figures, console, show, write
from benchmarks.service import PlainHttp, Serving, plain_http, serving, templates_of
from interpreter import Accelerator, Engine, InterpreterError, Settings, build_template, load_settings

RESULTS: Final = Path(__file__).with_name("neighbours.json")
TEMPLATES: Final = Path(__file__).with_name("templates")
TURNS: Final = int(os.environ.get("BENCH_TURNS", "3"))
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "6"))
MOST_RATIO: Final = 2.0
MOST_MEMORY_MB: Final = 200.0
BURNING: Final = 1.25
"""What is allowed above the fair share: N busy machines on P processors make `1+1` N / P as slow, and a quarter."""
PATIENCE: Final = 60.0
_PAUSE: Final = 0.5
_BUSY: Final = "busy_"
_CPUS: Final = os.cpu_count() or 1
_FAILURES: Final = (
    OSError,
    AssertionError,
    TimeoutError,
    httpx.HTTPError,
    asyncio.IncompleteReadError,
    InterpreterError,
)
REQUESTS: Final = {
    "execute": ("POST", "/v1/sessions/{}/execute", b'{"code": "1+1"}'),
    "healthz": ("GET", "/healthz", b""),
    "list": ("GET", "/v1/sessions", b""),
}


@dataclass
class Phase:
    """What was seen in some seconds: times in ms by kind of request, and processor time used, in processors."""

    times: dict[str, list[float]] = field(default_factory=lambda: {name: list[float]() for name in REQUESTS})
    spent: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    """Processor time of each noisy machine, first and last seen: some live shortly."""
    guest_share: float = 0.0
    service_share: float = 0.0
    memory_mb: float = 0.0

    def median(self, name: str) -> float:
        """Of that kind of request, in ms."""
        return statistics.median(self.times[name])


class Processes:
    """The service's processes: its own, and its machines."""

    def __init__(self, pid: int) -> None:
        parents: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                    int(stat.parent.name)
                )
        self.own = [pid]
        self.machines: set[int] = set()
        wanted = list(parents.get(pid, ()))
        while wanted:
            one = wanted.pop()
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{one}/comm").read_text().strip()
                if name.startswith("qemu"):
                    self.machines.add(one)
                elif name != "bwrap":
                    self.own.append(one)
                wanted += parents.get(one, ())

    def memory_mb(self) -> float:
        """Anonymous memory of the service's own."""
        total = 0
        for pid in self.own:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(("Pss_Anon:", "SwapPss:")):
                        total += int(line.split()[1])
        return total * 1024 / 1e6


def processor_time(pids: Iterable[int]) -> float:
    """Seconds, of those that are still there."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += cpu_seconds(pid)
    return total


class Bench:
    """One service with a quiet session, and noises beside it."""

    def __init__(self, service: Serving, http: PlainHttp, quiet: str) -> None:
        self.service = service
        self._http = http
        self._quiet = quiet
        self._quiet_machines = self.processes().machines

    def processes(self) -> Processes:
        """What there is now."""
        return Processes(self.service.process.pid)

    async def phase(self) -> Phase:
        """Ask and watch for some seconds."""
        seen, processes = Phase(), self.processes()
        seen.spent = {pid: [processor_time([pid])] * 2 for pid in processes.machines - self._quiet_machines}
        own, began = processor_time(processes.own), time.perf_counter()
        watching = asyncio.create_task(self._watch(seen))
        try:
            while time.perf_counter() - began < SECONDS or len(seen.times["execute"]) < 3:
                for name, (method, path, body) in REQUESTS.items():
                    asked = time.perf_counter()
                    async with asyncio.timeout(PATIENCE):
                        await self._http.request(method, path.format(self._quiet), body)
                    seen.times[name].append((time.perf_counter() - asked) * 1000)
        finally:
            watching.cancel()
        seconds = time.perf_counter() - began
        seen.guest_share = sum(last - first for first, last in seen.spent.values()) / seconds
        seen.service_share = (processor_time(processes.own) - own) / seconds
        return seen

    async def _watch(self, seen: Phase) -> None:
        while True:
            processes = self.processes()
            seen.memory_mb = max(seen.memory_mb, processes.memory_mb())
            for pid in processes.machines - self._quiet_machines:
                first, last = seen.spent.get(pid, [0.0, 0.0])
                seen.spent[pid] = [first, max(last, processor_time([pid]))]
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def client(self, name: str, sessions: list[str], share: float = 1.0) -> AsyncGenerator["NoisyClient"]:
        """A noisy client, prepared."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.noise", name, str(self.service.client.base_url)),
            *(",".join(sessions), str(share)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            client = NoisyClient(process)
            await client.hear("ready")
            yield client
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class NoisyClient:
    """The process of `benchmarks.noise`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def hear(self, word: str) -> None:
        """Wait until it says that."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line.decode().strip() == word, f"the noisy client said {line!r}"

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())

    @asynccontextmanager
    async def noise(self) -> AsyncGenerator[None]:
        """Noisy while the block runs."""
        self._say("on")
        await asyncio.sleep(_PAUSE)
        try:
            yield
        finally:
            self._say("off")
            await self.hear("off")


@asynccontextmanager
async def bench(home: Path) -> AsyncGenerator[Bench]:
    """A service of its own for each noise, so that none has another's memory; warm."""
    wanted = {"DEFAULT_TEMPLATE": "base", "MAX_CPUS": "1000", "TEMPLATE_PATH": str(TEMPLATES), "DRAIN_SECONDS": "1"}
    async with serving(home, **{f"INTERPRETER_{name}": value for name, value in wanted.items()}) as service:
        quiet = await service.new()
        async with plain_http(service) as http:
            made = Bench(service, http, quiet)
            for _ in range(10):
                for method, path, body in REQUESTS.values():
                    await http.request(method, path.format(quiet), body)
            yield made


async def beside(home: Path, name: str) -> Figures:
    """All figures of one noise."""
    noise = NOISES[name]
    quiet, noisy, control = list[Phase](), list[Phase](), list[Phase]()
    async with bench(home) as made:
        session = await made.service.new(template=noise.template)
        idle = made.processes().memory_mb()
        async with made.client(name, [session]) as client:
            for _ in range(TURNS):
                quiet.append(await made.phase())
                async with client.noise():
                    noisy.append(await made.phase())
                share = min(1.0, noisy[-1].guest_share)
                async with made.client("burn", [session], share) as burning, burning.noise():
                    control.append(await made.phase())
    figures = ratios(quiet, noisy)
    figures["control_ratio"] = ratio_of(quiet, control, "execute")
    figures["guest_share"] = statistics.median(phase.guest_share for phase in noisy)
    figures["service_share"] = statistics.median(phase.service_share for phase in noisy)
    figures["memory_mb"] = max(phase.memory_mb for phase in noisy) - idle
    return {f"{name}_{figure}": value for figure, value in figures.items()}


async def burners(home: Path, count: int) -> Figures:
    """Guests that burn their processors, all the same time."""
    quiet, busy = list[Phase](), list[Phase]()
    async with bench(home) as made:
        sessions = [await made.service.new() for _ in range(count)]
        async with made.client("burn", sessions) as client:
            for _ in range(TURNS):
                quiet.append(await made.phase())
                async with client.noise():
                    busy.append(await made.phase())
    return {f"busy_{count}_{figure}": value for figure, value in ratios(quiet, busy).items()}


def ratios(quiet: list[Phase], noisy: list[Phase]) -> Figures:
    """How much slower each kind of request is; its 95th percentile and the longest of all, in ms, of `1+1`."""
    figures = {f"{name}_ratio": ratio_of(quiet, noisy, name) for name in REQUESTS}
    times = [sorted(time for phase in phases for time in phase.times["execute"]) for phases in (quiet, noisy)]
    p95 = [ordered[int(len(ordered) * 0.95)] for ordered in times]
    figures |= {"quiet_ms": statistics.median(times[0]), "noisy_ms": statistics.median(times[1])}
    return figures | {"p95_ratio": p95[1] / p95[0], "longest_ms": times[1][-1], "quiet_longest_ms": times[0][-1]}


def ratio_of(quiet: list[Phase], noisy: list[Phase], name: str) -> float:
    """The median over the turns."""
    return statistics.median(
        after.median(name) / before.median(name) for before, after in zip(quiet, noisy, strict=True)
    )


def bounds(name: str) -> dict[str, float]:
    """The most that some figures of a noise may be."""
    if name in NOISES:
        return {f"{name}_execute_ratio": MOST_RATIO, f"{name}_memory_mb": MOST_MEMORY_MB}
    share = max(1.0, int(name.removeprefix(_BUSY)) / _CPUS)
    others = {f"{name}_{request}_ratio": MOST_RATIO for request in ("healthz", "list")}
    return {f"{name}_execute_ratio": share * BURNING, **others}


async def measure(settings: Settings, accelerator: Accelerator, name: str) -> Figures:
    """All figures of a noise, or of so many busy machines."""
    template = NOISES[name].template if name in NOISES else "base"
    with console.status(f"beside {name}") as status, templates_of(settings.home) as home:
        await build_template(settings, template, accelerator, status.update)
        if name in NOISES:
            return await beside(home, name)
        return await burners(home, int(name.removeprefix(_BUSY)))


async def main() -> int:
    """Measure and tell; 1 when a bound did not hold."""
    os.environ["INTERPRETER_TEMPLATE_PATH"] = str(TEMPLATES)
    settings = load_settings()
    everything = ",".join([*NOISES, f"{_BUSY}{_CPUS}", f"{_BUSY}{4 * _CPUS}"])
    names = os.environ.get("BENCH_NOISES", everything).split(",")
    async with Engine(settings) as engine:
        accelerator = Accelerator(engine.accelerator.accelerator)
    figures: Figures = {}
    failures: dict[str, str] = {}
    held: dict[str, bool] = {}
    for name in names:
        most = bounds(name)
        try:
            seen = await measure(settings, accelerator, name)
            figures |= seen
            show(seen, {figure: f"<= {value:g}" for figure, value in most.items()})
        except _FAILURES as error:
            seen: Figures = {}
            failures[name] = f"{type(error).__name__}: {error}"[:200]
            console.print(f"[red]{name} could not be measured: {failures[name]}")
        held |= {figure: seen.get(figure, math.inf) <= value for figure, value in most.items()}
        # After each: what was measured is there whatever becomes of the rest.
        write(RESULTS, "base", accelerator, figures, held=held, failures=failures)
    for figure in (figure for figure, kept in held.items() if not kept):
        console.print(f"[red]did not hold: {figure} {figures.get(figure, math.nan):.2f}")
    return int(not all(held.values()) and "BENCH_ONLY_REPORT" not in os.environ)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    sys.exit(asyncio.run(main()))
