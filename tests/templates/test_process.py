"""Programs of a build: a failure brings its last words; a cancelled one ends with all that it has started."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from interpreter import DiskFull, ProgramMissing, TemplateBuildFailed
from interpreter.templates.process import DEBIAN_PACKAGES, require, run_program


async def test_a_failure_brings_the_programs_last_words() -> None:
    with pytest.raises(TemplateBuildFailed, match=r"step failed with status 3:\nthe cause"):
        await run_program([sys.executable, "-c", "print('the cause'); raise SystemExit(3)"], step="step")


async def test_no_space_left_is_disk_full() -> None:
    with pytest.raises(DiskFull, match="step"):
        await run_program([sys.executable, "-c", "print('x: No space left on device'); exit(1)"], step="step")


def test_a_missing_program_is_named_with_debians_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEBIAN_PACKAGES, "no-such-program", "no-such-package")
    with pytest.raises(ProgramMissing, match="apt-get install no-such-package"):
        require("no-such-program")


async def test_a_cancelled_program_ends_with_its_children(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"

    os.mkfifo(fifo)
    code = f"exec 3> {fifo}; sleep 1000 & wait"
    task = asyncio.create_task(run_program(["sh", "-c", code], step="step"))
    # Opening waits for the writer; reading ends when the last process that holds it is gone.
    reader = await asyncio.to_thread(fifo.open, "rb")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with reader:
        assert await asyncio.to_thread(reader.read) == b""
