"""The measurements themselves, each on real sessions."""

import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import guest_code
from interpreter import Engine, Session
from interpreter.templates.snapshot import measure_boot
from interpreter.templates.store import TemplateStore

RESTORES = 10
ROUNDS = 40
ECHOES = 300
BLOCKS = 256
"""Of 256 KiB: 64 MiB a direction."""
CONNECTIONS = 50
CONNECTION_BYTES = 20 * 1024 * 1024
IDLE_SECONDS = 30

Progress = Callable[[str], None]


async def measure(engine: Engine, template: str, progress: Progress) -> dict[str, float]:
    """All figures: times in seconds, rates in MB/s, memory in MB, CPU in percent of a core."""
    loaded = await engine.load(template)
    progress("cold boot to a warm kernel")
    built = TemplateStore(engine.settings.templates_home).find(template)
    figures = {"cold_boot_s": await measure_boot(built, loaded.spec, engine.settings)}
    progress("restores")
    figures |= await restores(engine, template)
    async with engine.session(template=template) as session:
        progress("memory after one cell")
        await session.execute("1+1")
        figures["anonymous_mb"] = anonymous_mb(session.machine_pid)
        progress(f"idle for {IDLE_SECONDS} s")
        figures["idle_cpu_percent"] = await idle_cpu(session)
        progress("round trips of 1+1")
        figures |= await round_trips(session)
        progress("vsock echo and throughput")
        figures |= await throughput(session)
        figures["device_mb"] = private_mb(session.device_pid)
        progress(f"{CONNECTIONS} connections of {CONNECTION_BYTES >> 20} MB both ways")
        figures["fifty_connections_s"] = await many_connections(session)
    return figures


async def restores(engine: Engine, template: str) -> dict[str, float]:
    """Medians of the stages of a restore; the first is left out, it warms the host's caches."""
    marks: list[dict[str, float]] = []
    for _ in range(RESTORES + 1):
        async with engine.session(template=template) as session:
            started = time.monotonic()
            await session.kernel_info()
            marks.append({**session.timings, "kernel_info": session.timings["kernel"] + time.monotonic() - started})
    return {
        f"restore_{stage}_s": statistics.median(mark[stage] for mark in marks[1:])
        for stage in ("loaded", "running", "connected", "renewed", "kernel", "kernel_info")
    }


async def round_trips(session: Session) -> dict[str, float]:
    """`1+1` seen from the host, and from a jupyter_client inside the same guest, in turns."""
    inside: list[float] = []
    outside: list[float] = []
    for _ in range(2):
        connection = await session.execute("import ipykernel; ipykernel.get_connection_file()")
        code = f"CONNECTION = {connection.text}; ROUNDS = {ROUNDS}\n{guest_code.ROUND_TRIPS}"
        await session.execute(code)
        # The client inside is done when its output ends; reading it runs beside, in a subshell-free kernel.
        await session.execute("None", silent=True)
        inside.append(await inside_result(session))
        times: list[float] = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            await session.execute("1+1")
            times.append(time.perf_counter() - started)
        outside.append(statistics.median(times[ROUNDS // 4 :]))
    return {
        "round_trip_host_s": min(outside),
        "round_trip_inside_s": min(inside),
        "round_trip_ratio": min(outside) / min(inside),
    }


async def inside_result(session: Session) -> float:
    """Wait, from the host, for the client inside; the kernel itself must stay free to answer it."""
    async with session.vsock.listen(7100) as listener:
        code = """
import os, socket, threading
def report():
    text = measuring.communicate()[0]
    with socket.socket(socket.AF_VSOCK) as host:
        host.connect((2, 7100))
        host.sendall(text.encode())
threading.Thread(target=report).start()
"""
        await session.execute(code)
        reader, writer, _ = await listener.accept()
        text = await reader.read()
        writer.close()
    return float(text)


async def throughput(session: Session) -> dict[str, float]:
    """Echo of 64 bytes; one stream each way, and a socket pair in the same guest before and after."""
    await session.execute(f"BLOCKS = {BLOCKS}\n{guest_code.SERVER}")
    pairs = [await socket_pair(session)]
    reader, writer = await session.vsock.connect(5000)
    writer.write(b"e")
    echoes: list[float] = []
    for _ in range(ECHOES):
        started = time.perf_counter()
        writer.write(bytes(64))
        await reader.readexactly(64)
        echoes.append(time.perf_counter() - started)
    writer.close()
    to_host: list[float] = []
    to_guest: list[float] = []
    for _ in range(3):
        to_host.append(await receive_rate(session))
        to_guest.append(await send_rate(session))
        pairs.append(await socket_pair(session))
    pair = statistics.median(pairs)
    return {
        "vsock_echo_s": statistics.median(echoes),
        "socket_pair_mb_s": pair,
        "guest_to_host_mb_s": statistics.median(to_host),
        "host_to_guest_mb_s": statistics.median(to_guest),
        "guest_to_host_ratio": statistics.median(to_host) / pair,
        "host_to_guest_ratio": statistics.median(to_guest) / pair,
    }


async def socket_pair(session: Session) -> float:
    """MB/s between two processes inside the guest."""
    return float((await session.execute(f"BLOCKS = {BLOCKS}\n{guest_code.SOCKET_PAIR}")).stdout)


async def receive_rate(session: Session) -> float:
    """MB/s from the guest to the host."""
    reader, writer = await session.vsock.connect(5000)
    started, count = time.perf_counter(), 0
    writer.write(b"s")
    while data := await reader.read(1 << 20):
        count += len(data)
    writer.close()
    return count / (time.perf_counter() - started) / 1e6


async def send_rate(session: Session) -> float:
    """MB/s from the host to the guest, until the guest says that it has all."""
    reader, writer = await session.vsock.connect(5000)
    block, started = bytes(262144), time.perf_counter()
    writer.write(b"r")
    for _ in range(BLOCKS):
        writer.write(block)
        await writer.drain()
    writer.write_eof()
    count = int(await reader.read())
    writer.close()
    return count / (time.perf_counter() - started) / 1e6


async def many_connections(session: Session) -> float:
    """Seconds until all connections have echoed all their random bytes; raises when one came back altered."""
    payload = os.urandom(CONNECTION_BYTES)
    expected = hashlib.sha256(payload).digest()

    async def one() -> None:
        reader, writer = await session.vsock.connect(5000)

        async def send() -> None:
            writer.write(b"e")
            for start in range(0, len(payload), 65536):
                writer.write(payload[start : start + 65536])
                await writer.drain()
            writer.write_eof()

        digest = hashlib.sha256()
        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            while data := await reader.read(65536):
                digest.update(data)
        writer.close()
        if digest.digest() != expected:
            raise RuntimeError("a connection returned other bytes than it was given")

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(one())
    return time.perf_counter() - started


async def idle_cpu(session: Session) -> float:
    """Percent of a core that QEMU and this process use while nothing happens."""
    await asyncio.sleep(3)
    before, own = cpu_seconds(session.machine_pid), time.process_time()
    await asyncio.sleep(IDLE_SECONDS)
    used = cpu_seconds(session.machine_pid) - before + time.process_time() - own
    return used / IDLE_SECONDS * 100


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, from their run times in ns."""
    tasks = Path("/proc", str(pid), "task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def private_mb(pid: int) -> float:
    """Memory of a process that no other shares; only root may look at a device's."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text(encoding="ascii").splitlines()
    except PermissionError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024 / 1e6


def anonymous_mb(pid: int) -> float:
    """Memory that this machine does not share with the others."""
    lines = Path("/proc", str(pid), "smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024 / 1e6
