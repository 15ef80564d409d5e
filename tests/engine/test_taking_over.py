"""Taking a machine over without asking its guest: twice in a row, after its device's process was killed, when a service
was killed in the middle of it; a guest that does not answer is told in time, and an error of the host's own leaves the
machine for another try."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from interpreter import Engine, GuestUnresponsive, MachineDied, Session, Settings
from interpreter.engine import restore
from interpreter.engine.places import Place
from interpreter.vm.takeover import FoundMachine, end_machine, find_machine

TEMPLATE = "base"


def found_in(place: Place) -> FoundMachine:
    found = find_machine(place.folder)
    assert found is not None
    return found


async def started_elsewhere(home: Path, settings: Settings) -> Place:
    """A session that a service of its own has started, which was killed."""
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from interpreter import Engine, Settings\n"
        "from interpreter.engine.places import Places\n"
        "async def main():\n"
        "    async with Engine(Settings(home=Path(sys.argv[1]))) as engine:\n"
        "        with Places(Path(sys.argv[2])).new() as place:\n"
        f"            async with engine.session(template={TEMPLATE!r}, place=place) as session:\n"
        "                await session.execute('x = 41')\n"
        "                print('PLACE', place.name, place.folder, flush=True)\n"
        "                await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(settings.home), str(home)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    # Logs are there as well.
    while not (line := (await process.stdout.readline()).decode()).startswith("PLACE"):
        assert line, "the service ended"
    _, name, folder = line.split()
    process.kill()
    await process.wait()
    return Place(name, Path(folder))


@pytest.fixture
async def place(engine: Engine, settings: Settings, tmp_path: Path) -> AsyncGenerator[Place]:
    """A machine whose service was killed, with x = 41 in its kernel."""
    place = await started_elsewhere(tmp_path, settings)
    yield place
    await end_machine(place.folder)


@asynccontextmanager
async def taken_over(engine: Engine, place: Place) -> AsyncGenerator[Session]:
    async with engine.take_over("one", TEMPLATE, machine=found_in(place), environment={}) as session:
        yield session


async def x_of(session: Session) -> str | None:
    return (await session.execute("x")).text


@asynccontextmanager
async def given_up(engine: Engine, place: Place) -> AsyncGenerator[Session]:
    """Taken over by a service that an error of its own then ends: the machine stays."""
    with pytest.raises(OSError, match="no more descriptors"):
        async with taken_over(engine, place) as session:
            yield session
            raise OSError("no more descriptors")


async def test_a_machine_is_taken_over_twice_in_a_row_and_keeps_its_variables(engine: Engine, place: Place) -> None:
    first = found_in(place).record
    async with given_up(engine, place) as session:
        assert await x_of(session) == "41"
        await session.execute("x += 1")
    second = found_in(place).record
    assert (second.qemu, second.template, second.content_hash) == (first.qemu, TEMPLATE, first.content_hash)
    assert second.device != first.device
    assert second.device_before_ns > first.device_before_ns
    async with taken_over(engine, place) as session:
        assert await x_of(session) == "42"
        await session.upload(b"stays", "file")
        assert await session.download("file") == b"stays"
    assert find_machine(place.folder) is None


async def test_a_machine_whose_device_was_killed_is_taken_over_all_the_same(engine: Engine, place: Place) -> None:
    os.kill(found_in(place).record.device.pid, signal.SIGKILL)
    async with taken_over(engine, place) as session:
        assert await x_of(session) == "41"


async def test_a_service_that_is_killed_in_the_middle_of_it_leaves_a_machine_that_can_be_taken_over(
    engine: Engine, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each of its steps: the old device is out, the new one in, the guest about to run."""

    async def breaks(*_: object, **__: object) -> None:
        raise OSError("killed here")

    for step in ("add_vsock_channel", "plug_vsock", "run"):
        with monkeypatch.context() as patch:
            patch.setattr(restore.Machine, step, breaks)
            with pytest.raises(OSError, match="killed here"):
                async with taken_over(engine, place):
                    pass
    async with taken_over(engine, place) as session:
        assert await x_of(session) == "41"


async def test_a_guest_that_does_not_answer_is_told_in_time_and_ended(
    engine: Engine, settings: Settings, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that hangs does not hear the bell.
    monkeypatch.setattr(restore.Machine, "ring", lambda *_: None)
    monkeypatch.setattr(engine, "settings", settings.model_copy(update={"restore_timeout": 3.0}))
    with pytest.raises(GuestUnresponsive):
        async with taken_over(engine, place):
            pass
    assert find_machine(place.folder) is None


async def test_a_machine_that_is_gone_is_told(engine: Engine, place: Place) -> None:
    found = found_in(place)
    pidfd = os.pidfd_open(found.record.qemu.pid)
    os.kill(found.record.qemu.pid, signal.SIGKILL)
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    await gone.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)
    with pytest.raises(MachineDied):
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(engine.take_over("one", TEMPLATE, machine=found, environment={}))


async def test_a_machine_that_was_never_recorded_is_ended_by_its_socket(engine: Engine, place: Place) -> None:
    """Its service was killed after QEMU had started and before it was noted."""
    found = found_in(place)
    (place.folder / "machine.json").unlink()
    pidfd = os.pidfd_open(found.record.qemu.pid)
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    await end_machine(place.folder)
    async with asyncio.timeout(20):
        await gone.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)
