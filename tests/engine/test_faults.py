"""What goes wrong: machines that die, guests that never answer, snapshots that were touched; and nothing is left.

Each fault gives one clear error, within its bound, and leaves no process, descriptor or file behind.
"""

import asyncio
import contextlib
import gc
import os
import shutil
import signal
from collections.abc import AsyncGenerator, Collection, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from interpreter import (
    Engine,
    GuestUnresponsive,
    KernelDied,
    MachineStartFailed,
    Session,
    Settings,
    SnapshotDamaged,
)
from interpreter.device.fork import DeviceParent
from interpreter.engine.renewal import Renewal
from interpreter.engine.restore import Listeners, restore_guest
from interpreter.templates.store import TemplateStore
from interpreter.vm.system_calls import open_device_filter

pytestmark = pytest.mark.machine

TEMPLATE = "base"


def descendants(pid: int = 0, besides: Collection[int] = ()) -> set[int]:
    """The processes that a process has started, and theirs, but for ``besides`` and what is below those."""
    found: set[int] = set()
    # Threads and processes come and go while they are looked at.
    with contextlib.suppress(OSError):
        for task in Path("/proc", str(pid or os.getpid()), "task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    if child not in besides:
                        found |= {child} | descendants(child, besides)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    """Each test leaves no process that was not there before; another test's service may have some."""
    before = descendants()
    yield
    assert descendants(besides=before) == set()


def open_descriptors() -> int:
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_machine_that_ends_in_the_middle_of_a_cell_gives_kernel_died(
    engine: Engine, number: signal.Signals
) -> None:
    async with engine.session(template=TEMPLATE) as session:
        outputs = aiter(session.execute("print('go', flush=True)\nwhile True: pass"))
        await anext(outputs)
        os.kill(session.machine_pid, number)
        with pytest.raises(KernelDied):
            async with asyncio.timeout(20):
                await anext(outputs)
        with pytest.raises(KernelDied):
            await session.execute("1")


async def test_a_device_that_is_killed_ends_its_session_and_no_other(engine: Engine, session: Session) -> None:
    async with engine.session(template=TEMPLATE) as other:
        os.kill(other.device_pid, signal.SIGKILL)
        with pytest.raises(KernelDied):
            async with asyncio.timeout(20):
                await other.execute("while True: pass")
        assert (await session.execute("1")).text == "1"


async def test_a_guest_that_never_answers_is_told_and_ended(engine: Engine, settings: Settings) -> None:
    # With no time at all to answer in, every guest is one that never answers.
    hasty = settings.model_copy(update={"restore_timeout": 0.001})
    async with Engine(hasty) as impatient:
        await impatient.load(TEMPLATE)
        with pytest.raises(GuestUnresponsive, match="INTERPRETER_RESTORE_TIMEOUT"):
            async with impatient.session(template=TEMPLATE):
                pass


async def test_a_stopped_guest_makes_calls_time_out_rather_than_hang(engine: Engine) -> None:
    async with engine.session(template=TEMPLATE) as session:
        os.kill(session.machine_pid, signal.SIGSTOP)
        with pytest.raises(GuestUnresponsive):
            await session.control.call("ping", timeout=0.2)
        os.kill(session.machine_pid, signal.SIGCONT)
        assert (await session.execute("1")).text == "1"


@asynccontextmanager
async def copied_home(settings: Settings, folder: Path) -> AsyncGenerator[tuple[Settings, Path]]:
    """Settings whose built template is a copy that a test may damage; sparse files stay sparse."""
    copy = settings.model_copy(update={"home": folder})
    built = TemplateStore(settings.templates_home).find(TEMPLATE).folder.relative_to(settings.templates_home)
    for path in (built, Path("names", TEMPLATE)):
        target = copy.templates_home / path
        target.parent.mkdir(parents=True)
        process = await asyncio.create_subprocess_exec(
            "cp", "--archive", "--sparse=always", str(settings.templates_home / path), str(target)
        )
        assert await process.wait() == 0
    if (settings.home / "accelerator.json").exists():
        shutil.copy(settings.home / "accelerator.json", folder)
    try:
        yield copy, copy.templates_home / built
    finally:
        shutil.rmtree(copy.templates_home)


def alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [alter, cut, Path.unlink])
@pytest.mark.parametrize("name", ["snapshot/memory", "snapshot/devices", "snapshot/scratch", "rootfs.squashfs"])
async def test_a_damaged_file_is_named_and_never_loaded(
    engine: Engine, settings: Settings, tmp_path: Path, name: str, damage: object
) -> None:
    async with copied_home(settings, tmp_path) as (copy, built):
        async with Engine(copy) as fine:
            await fine.load(TEMPLATE)
        damage(built / name)  # type: ignore[operator]
        async with Engine(copy) as engine_on_copy:
            with pytest.raises(SnapshotDamaged, match=f"{Path(name).name}.*--force"):
                await engine_on_copy.load(TEMPLATE)


async def test_device_state_that_qemu_cannot_load_gives_a_clear_error(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    # What a check of hashes cannot see: a snapshot that is whole, but not one that this QEMU takes.
    loaded = await engine.load(TEMPLATE)
    (tmp_path / "devices").write_bytes(os.pread(loaded.devices, 5000, 0))
    renewal = Renewal(hostname="broken")
    with (tmp_path / "devices").open("rb") as devices, pytest.raises(MachineStartFailed, match="refused the snapshot"):
        broken = replace(loaded, devices=devices.fileno())
        async with (
            DeviceParent(open_device_filter) as devices,
            restore_guest(settings, broken, devices, renewal, Listeners(print, print)),
        ):
            pass


async def test_a_session_that_is_cancelled_while_it_starts_leaves_nothing(engine: Engine) -> None:
    before = open_descriptors()
    for delay in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.3):

        async def start() -> None:
            async with engine.session(template=TEMPLATE):
                await asyncio.Event().wait()

        task = asyncio.create_task(start())
        # Cancelled at several moments on purpose: whichever step is under way must clean up after itself.
        await asyncio.wait({task}, timeout=delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert open_descriptors() <= before


async def test_fifty_rounds_leave_memory_descriptors_and_processes_as_they_were(engine: Engine) -> None:
    async def one_round() -> None:
        async with engine.session(template=TEMPLATE) as session:
            assert (await session.execute("1 + 1")).text == "2"

    def resident() -> int:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(5):
        await one_round()
    descriptors, memory = open_descriptors(), resident()
    for _ in range(50):
        await one_round()
    assert open_descriptors() <= descriptors
    assert resident() - memory < 10_000_000
    assert list(engine.settings.scratch_home.iterdir()) == []


async def test_a_kernel_out_of_memory_dies_alone(session: Session) -> None:
    with pytest.raises(KernelDied, match="out of memory"):
        await session.execute("x = []\nwhile True: x.append(bytearray(16_000_000))")
    await session.restart()
    assert (await session.execute("1")).text == "1"
