"""Shows that a machine is found by its record and by nothing else: not by a name, not by a number that another process
has by now, not by a record of another boot or of a form that is not known."""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from interpreter.errors import MachineDied
from interpreter.vm.record import (
    RECORD,
    MachineRecord,
    Process,
    boot_id,
    identify,
    open_process,
    processor_time,
    read_record,
    write_record,
)
from interpreter.vm.takeover import end_machine, find_machine


@asynccontextmanager
async def sleeper(name: str = "sleep") -> AsyncGenerator[asyncio.subprocess.Process]:
    """A process that calls itself what it likes."""
    process = await asyncio.create_subprocess_exec("bash", "-c", f"exec -a '{name}' sleep infinity")
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def identified(process: asyncio.subprocess.Process) -> Process:
    async with asyncio.timeout(20):
        while "sleep" not in (found := identify(process.pid)).program:  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(0)
    return found


def record_of(qemu: Process, **more: object) -> MachineRecord:
    fields = {
        "boot": boot_id(),
        "qemu": qemu,
        "device": qemu,
        "vsock_slot": 4,
        "template": "base",
        "content_hash": "0" * 64,
        "agent_version": 2,
    }
    return MachineRecord.model_validate({**fields, **more})


async def test_a_machine_is_found_by_its_record_and_ended_by_it(tmp_path: Path) -> None:
    async with sleeper() as process:
        write_record(record_of(await identified(process)), tmp_path)
        assert stat.S_IMODE((tmp_path / RECORD).stat().st_mode) == 0o600
        assert [path.name for path in tmp_path.iterdir()] == [RECORD]
        found = find_machine(tmp_path)
        assert found is not None
        assert found.record == read_record(tmp_path)
        assert processor_time(found.record.qemu) > 0
        await end_machine(tmp_path)
        assert await process.wait() == -9
        assert find_machine(tmp_path) is None
        assert processor_time(found.record.qemu) == 0


@pytest.mark.parametrize(
    "change", [{"started": 1}, {"user": 12345}, {"program": "/usr/bin/qemu-system-x86_64"}], ids=lambda c: next(iter(c))
)
async def test_another_process_with_the_machines_number_is_left_alone(
    tmp_path: Path, change: dict[str, object]
) -> None:
    async with sleeper("qemu-system-x86_64 -name interpreter-0") as process:
        qemu = (await identified(process)).model_copy(update=change)
        write_record(record_of(qemu), tmp_path)
        assert find_machine(tmp_path) is None
        with pytest.raises(MachineDied, match="another has its number"):
            open_process(qemu)
        await end_machine(tmp_path)
        assert process.returncode is None
        os.kill(process.pid, 0)


@pytest.mark.parametrize("change", [{"boot": "another"}, {"format": 99}])
async def test_a_record_of_another_boot_or_form_finds_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    async with sleeper() as process:
        write_record(record_of(await identified(process), **change), tmp_path)
        assert find_machine(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_record_that_cannot_be_read_finds_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / RECORD).write_text(text)
    assert find_machine(tmp_path) is None


async def test_a_folder_whose_machine_was_never_recorded_is_swept(tmp_path: Path) -> None:
    """Without a machine behind it there is nothing to end, and no error."""
    await end_machine(tmp_path)
    await end_machine(tmp_path / "gone")
