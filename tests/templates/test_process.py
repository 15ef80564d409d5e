"""Programs of a build: a failure brings its last words; a cancelled one ends with all that it has started."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from interpreter import DiskFull, ProgramMissing, TemplateBuildFailed
from interpreter.templates import process
from interpreter.templates.process import DEBIAN_PACKAGES, require, run_program
from interpreter.vm.priority import MACHINE_OOM_SCORE


async def test_a_failure_brings_the_programs_last_words() -> None:
    with pytest.raises(TemplateBuildFailed, match=r"step failed with status 3:\nthe cause"):
        await run_program([sys.executable, "-c", "print('the cause'); raise SystemExit(3)"], step="step")


async def test_what_a_build_runs_ends_before_the_service_when_memory_runs_out() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    await run_program(["grep", "-qx", str(MACHINE_OOM_SCORE), "/proc/self/oom_score_adj"], step="step")
    assert own < MACHINE_OOM_SCORE


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


async def test_a_cancelled_program_leaves_no_child_that_did_not_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_TERM_SECONDS", 0.5)
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    code = f"(trap '' TERM; exec 3> {fifo}; echo ready >&3; while :; do read x < {tmp_path / 'never'}; done) & wait"
    os.mkfifo(tmp_path / "never")
    task = asyncio.create_task(run_program(["sh", "-c", code], step="step"))
    reader = await asyncio.to_thread(fifo.open, "rb")
    with reader:
        assert await asyncio.to_thread(reader.readline) == b"ready\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(reader.read) == b""


async def test_only_the_last_lines_are_told() -> None:
    code = "for n in range(1, 101): print('line', n)\nraise SystemExit(1)"
    with pytest.raises(TemplateBuildFailed) as error:
        await run_program([sys.executable, "-c", code], step="step")
    lines = error.value.message.splitlines()
    assert lines == ["step failed with status 1:", *(f"line {number}" for number in range(86, 101))]


async def test_a_line_without_end_and_bytes_that_are_no_text_do_no_harm() -> None:
    code = "import sys; sys.stdout.buffer.write(b'x' * 1_000_000 + bytes([255]) + b'the end'); raise SystemExit(1)"
    with pytest.raises(TemplateBuildFailed, match="the end") as error:
        await run_program([sys.executable, "-c", code], step="step")
    assert len(error.value.message) < 10_000


async def test_a_program_that_does_well_says_nothing_and_reads_nothing() -> None:
    await run_program([sys.executable, "-c", "import sys; assert sys.stdin.read() == ''"], step="step")


async def test_a_killed_program_is_a_failed_step() -> None:
    with pytest.raises(TemplateBuildFailed, match="status -9"):
        await run_program(["sh", "-c", "kill -9 $$"], step="step")
