"""Shows a device in a process of its own: what it may do, that its machine's end is its end and nobody else's, that it
outlives its service, and that a guest or a QEMU which misbehaves costs others and the service nothing."""

import asyncio
import hashlib
import os
import random
import signal
import socket
import statistics
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest

from interpreter.device.client import DeviceClient
from interpreter.device.fork import DeviceParent
from interpreter.errors import GuestMisbehaved, VsockConnectError, VsockError
from interpreter.vm.system_calls import open_device_filter

from .jailed import echo, gone, jailed

MIB = 1024 * 1024


@pytest.fixture
async def parent() -> AsyncGenerator[DeviceParent]:
    async with DeviceParent(open_device_filter) as parent:
        yield parent


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0.01)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


async def exchange(device: DeviceClient, data: bytes) -> bytes:
    reader, writer = await device.connect(7)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.ensure_future(send())
    answer = await reader.read()
    await sending
    writer.close()
    return answer


async def test_many_streams_to_two_machines_arrive_whole(parent: DeviceParent) -> None:
    pieces = [random.Random(seed).randbytes(300_000) for seed in range(20)]
    async with jailed(parent) as one, jailed(parent) as other:
        answers = await asyncio.gather(
            *(exchange((one, other)[index % 2].device, piece) for index, piece in enumerate(pieces))
        )
        for piece, answer in zip(pieces, answers, strict=True):
            assert hashlib.sha256(answer).digest() == hashlib.sha256(piece).digest()


async def test_a_device_is_in_its_machines_jail_and_has_no_rights(parent: DeviceParent) -> None:
    async with jailed(parent) as machine:
        # From the moment when the service hears of it.
        pid = machine.device.pid
        about, of_qemu = status(pid), status(machine.pid)
        assert int(about["CapEff"], 16) == int(about["CapPrm"], 16) == 0
        assert about["NoNewPrivs"] == "1"
        assert (about["Seccomp"], about["Seccomp_filters"]) == ("2", "1")
        assert (about["Uid"], about["Gid"]) == (of_qemu["Uid"], of_qemu["Gid"])
        # One more number each: it has one in its machine's own process namespace, too.
        assert len(about["NSpid"].split()) == len(of_qemu["NSpid"].split())
        if os.geteuid() == 0:
            for kind in ("mnt", "net", "pid", "ipc", "uts", "user", "cgroup"):
                own, of_its_machine = (Path(f"/proc/{one}/ns/{kind}").readlink() for one in (pid, machine.pid))
                assert own == of_its_machine, kind
            held = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            assert sum(target.startswith("/") and target != "/dev/null" for target in held) == 0, held
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max processes             0 " in limits
        assert "Max core file size        0 " in limits


async def test_a_devices_process_has_little_memory_of_its_own(parent: DeviceParent) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look at a process that has given up its rights")
    async with jailed(parent) as machine:
        data = random.Random(0).randbytes(4 * MIB)
        assert await exchange(machine.device, data) == data
        lines = Path(f"/proc/{machine.device.pid}/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024
        assert private <= 8 * MIB


async def test_a_device_ends_with_its_machine(parent: DeviceParent) -> None:
    async with jailed(parent) as machine:
        await echo(machine.device)
        os.kill(machine.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            await machine.device.wait_closed()
        await until(lambda: gone(machine.device.pid))


async def test_a_device_that_is_killed_takes_its_own_machines_streams_along_and_no_others(parent: DeviceParent) -> None:
    async with jailed(parent) as one, jailed(parent) as other:
        reader, _ = await one.device.connect(7)
        os.kill(one.device.pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await one.device.wait_closed()
        assert isinstance(one.device.failure, VsockError)
        assert await echo(other.device) == b"echo"
        await until(lambda: gone(one.device.pid))


async def test_a_device_outlives_its_service_and_ends_with_its_machine_then(parent: DeviceParent) -> None:
    async with jailed(parent) as machine:
        await echo(machine.device)
        # As a killed service leaves it: the control socket is closed.
        await machine.device.__aexit__(None, None, None)
        with pytest.raises(VsockConnectError):
            await machine.device.connect(7)
        await asyncio.sleep(0.2)
        assert not gone(machine.device.pid)
        os.kill(machine.pid, signal.SIGKILL)
        await until(lambda: gone(machine.device.pid))


async def test_devices_go_on_without_their_parent_and_a_new_one_is_there_for_the_next(parent: DeviceParent) -> None:
    async with jailed(parent) as machine:
        await echo(machine.device)
        os.kill(int(status(machine.device.pid)["PPid"]), signal.SIGKILL)
        assert await echo(machine.device) == b"echo"
        async with jailed(parent) as another:
            assert await echo(another.device) == b"echo"


async def test_a_machine_that_is_gone_gets_no_device(parent: DeviceParent) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "infinity")
    pidfd = os.pidfd_open(process.pid)
    process.kill()
    await process.wait()
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(VsockError, match="ended"):
        async with parent.start(ours, pidfd=pidfd, guest_cid=42):
            pass
    os.close(pidfd)


@pytest.mark.parametrize("cid", [0, 1, 2, 0xFFFF_FFFF])
async def test_reserved_context_ids_are_refused(parent: DeviceParent, cid: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(VsockError, match="context id"):
        async with parent.start(ours, pidfd=0, guest_cid=cid):
            pass


@pytest.mark.parametrize("noise", ["small_packets", "long_chains"])
async def test_a_flood_of_packets_costs_its_own_device_and_the_service_nothing(
    parent: DeviceParent, noise: str
) -> None:
    async with jailed(parent) as quiet, jailed(parent, noise) as noisy:
        await echo(quiet.device)
        device, own = processor_seconds(noisy.device.pid), time.process_time()
        busy = asyncio.ensure_future(asyncio.to_thread(_wait_until_busy, noisy.device.pid, device + 0.5))
        ended = asyncio.ensure_future(noisy.device.wait_closed())
        await asyncio.wait({busy, ended}, return_when=asyncio.FIRST_COMPLETED)
        assert not ended.done(), noisy.device.failure
        await busy
        ended.cancel()
        own = time.process_time() - own
        assert own < 0.25, "what a device does for its guest does not run in the service"
        assert await echo(quiet.device) == b"echo"


def _wait_until_busy(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + 60
    while processor_seconds(pid) < seconds and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processor_seconds(pid) >= seconds


async def test_a_quiet_machines_echo_beside_a_flood_stays_near_what_it_is_beside_mere_work(
    parent: DeviceParent,
) -> None:
    """Two processes that flood are compared with two that only burn their processors: others wait no longer."""
    async with jailed(parent) as quiet:
        burning = [await asyncio.create_subprocess_exec("sh", "-c", "while :; do :; done") for _ in range(2)]
        try:
            beside_work = await _echo_time(quiet.device)
        finally:
            for process in burning:
                process.kill()
                await process.wait()
        async with jailed(parent, "long_chains"):
            beside_flood = await _echo_time(quiet.device)
        assert beside_flood < 5 * beside_work + 0.01


async def _echo_time(device: DeviceClient) -> float:
    reader, writer = await device.connect(7)
    times: list[float] = []
    for _ in range(60):
        started = time.perf_counter()
        writer.write(b"x")
        await reader.readexactly(1)
        times.append(time.perf_counter() - started)
    writer.transport.abort()
    return statistics.median(times)


async def test_a_chain_that_no_driver_needs_ends_the_device_with_its_cause(parent: DeviceParent) -> None:
    async with jailed(parent) as quiet, jailed(parent, "endless_chains") as noisy:
        async with asyncio.timeout(30):
            await noisy.device.wait_closed()
        assert isinstance(noisy.device.failure, GuestMisbehaved)
        assert await echo(quiet.device) == b"echo"


async def test_an_eventfd_that_blocks_stops_nobody_but_its_own_device(parent: DeviceParent) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look at a process that has given up its rights")
    async with jailed(parent) as quiet, jailed(parent, "blocking_call") as noisy:
        await until(lambda: _stands_still(noisy.device.pid))
        with pytest.raises(VsockConnectError, match="did not answer"):
            await noisy.device.connect(7, timeout=0.2)
        assert await echo(quiet.device) == b"echo"
        os.kill(noisy.pid, signal.SIGKILL)
        await until(lambda: gone(noisy.device.pid))


def _stands_still(pid: int) -> bool:
    # x86-64: write(2) is number 1.
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "1"


async def test_descriptors_beside_every_byte_of_a_message_end_the_device(parent: DeviceParent) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with jailed(parent) as quiet, jailed(parent, "many_descriptors") as noisy:
        async with asyncio.timeout(30):
            await noisy.device.wait_closed()
        assert "inside" in str(noisy.device.failure)
        assert await echo(quiet.device) == b"echo"
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
