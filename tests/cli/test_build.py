"""A build that is broken off, or for which there is no room, says so and leaves nothing behind: nothing runs on, is
mounted or half-built. The state folders here are the tests' own."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from test_command import finish, interpreter

from interpreter import Settings
from interpreter.templates.store import TemplateStore

pytestmark = [pytest.mark.machine, pytest.mark.timeout(600)]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the build's programs put what they need for a moment; nobody else does."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    # The builder's own user must come through.
    for path in (folder, *folder.parents[:3]):
        path.chmod(0o755)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "state")


@pytest.fixture
def small_disk(tmp_path: Path, megabytes: int) -> Generator[Settings]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "small", folder], check=True)
    yield Settings(home=folder)
    # A mount that is still in use cannot be taken away: that fails the test.
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("pip packages", signal.SIGINT),
        ("pip packages", signal.SIGTERM),
        ("Debian packages", signal.SIGINT),
        ("image", signal.SIGINT),
    ],
)
async def test_a_build_that_is_broken_off_leaves_nothing(
    own: Settings, temporary: Path, step: str, number: signal.Signals
) -> None:
    process = await interpreter(own, "template", "build", "base", TMPDIR=str(temporary))
    assert process.stderr is not None
    # A step is told when it is over: the next one runs now.
    while f"✓ {step}" not in (line := (await process.stderr.readline()).decode()):
        assert line, "the build ended by itself"
    process.send_signal(number)
    code, _, err = await finish(process)
    assert code == 130, err
    assert "Traceback" not in err
    assert left_of(own, temporary) == []


async def test_a_build_that_is_killed_leaves_no_mount_and_its_folder_is_swept_up_by_the_next_one(
    own: Settings, temporary: Path
) -> None:
    process = await interpreter(own, "template", "build", "base", TMPDIR=str(temporary))
    # Late enough for what mmdebstrap mounts.
    while not list((own.templates_home / "built").glob(".building-*/work/mmdebstrap.*/usr/bin/python3*")):
        assert process.returncode is None, "the build ended by itself"
        await asyncio.sleep(0.01)
    while started := processes_of(own):
        for pid in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.01)
    await process.communicate()
    assert mounts_of(own.home) == []
    with TemplateStore(own.templates_home).build_folder():
        pass
    assert left_of(own, temporary) == []


@pytest.mark.parametrize("megabytes", [8, 100])
async def test_a_full_disk_is_told_and_leaves_nothing(small_disk: Settings, temporary: Path) -> None:
    build = await interpreter(small_disk, "template", "build", "base", TMPDIR=str(temporary))
    code, out, err = await finish(build)
    assert code == 3, (out, err)
    assert "disk_full" in err
    assert "Traceback" not in err
    assert left_of(small_disk, temporary) == []


def left_of(settings: Settings, temporary: Path) -> list[str]:
    """What a build has left: folders, temporary files, mounts, processes."""
    built = settings.templates_home / "built"
    folders = [*(built.iterdir() if built.exists() else ()), *temporary.iterdir()]
    mounts = [*mounts_of(temporary), *mounts_of(settings.templates_home)]
    return [*map(str, folders), *mounts, *map(command_of, processes_of(settings))]


def mounts_of(folder: Path) -> list[str]:
    """What is mounted below a folder."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{folder}/" in line]


def processes_of(settings: Settings) -> list[int]:
    """The processes that were started for a state folder."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(settings.home).encode() in about:
            found.append(int(folder.name))
    return found


def command_of(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ")[:200].decode(errors="replace")
    except OSError:
        return f"{pid}, which is gone by now"
