"""What the agent does for the host it does with the user's rights, and what it starts is the user's, confined."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can take another user's rights")

USER = 1000
_PROGRAM = """
import asyncio, json, socket, sys
from pathlib import Path
from kernel_guest.commands import RunningCommand, command_of
from kernel_guest.frames import FrameDecoder
from kernel_guest.groups import Group
from kernel_guest.processes import Reaper

async def main(home, body, user):
    reaper = Reaper()
    reaper.start()
    before = Path("/proc/self/oom_score_adj").read_text()
    command = RunningCommand.start(command_of(body, Path(home)), user, reaper, Group(None))
    assert Path("/proc/self/oom_score_adj").read_text() == before
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    serving = asyncio.create_task(command.serve(theirs))
    reader, writer = await asyncio.open_connection(sock=ours)
    decoder, printed = FrameDecoder(), b""
    while True:
        for frame in decoder.feed(await reader.read(65536)):
            printed += frame.body.get("data", b"")
            if "status" in frame.body:
                writer.close()
                await serving
                print(json.dumps([frame.body["status"], printed.decode()]))
                return

asyncio.run(main(*json.loads(sys.argv[1])))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder of the user's, in one that anybody may enter."""
    # Not pytest's own folder, which only its user may enter.
    with tempfile.TemporaryDirectory(prefix="home-") as name:
        os.chown(name, USER, USER)
        yield Path(name)


def run(home: Path, command: str | list[str], cwd: str = "") -> tuple[int, str]:
    body = {"command": command, "cwd": cwd, "env": {}, "stdin": False}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps([str(home), body, USER])],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    status, printed = json.loads(done.stdout)
    return status, printed


def test_a_command_is_the_users_and_confined_from_its_first_moment(home: Path) -> None:
    about = "cat /proc/self/oom_score_adj; grep -E '^(Uid|Cap(Eff|Prm))' /proc/self/status"
    line = f"id -u; id -G; ulimit -u; ulimit -Hu; {about}"
    status, printed = run(home, line)
    values = printed.split("\n")
    assert (status, values[:5]) == (0, ["1000", "1000", "256", "256", "500"])
    # Real, effective, saved and file system's: there is no way back.
    assert [line.split()[1:] for line in values[5:] if line] == [["1000"] * 4, ["0" * 16], ["0" * 16]]


def test_a_command_does_not_start_in_a_folder_that_its_user_may_not_enter(home: Path) -> None:
    (home / "locked").mkdir(mode=0o700)
    (home / "link").symlink_to("locked")
    for cwd in ("locked", "link"):
        with pytest.raises(RuntimeError, match="cannot be worked in: Permission denied"):
            run(home, "true", cwd)


def test_folders_are_worked_in_with_the_users_rights(home: Path) -> None:
    program = """
import json, socket, sys
from pathlib import Path
from kernel_guest import archive, files, tree
home = Path(sys.argv[1])
codes = []
with files.rights_of(1000):
    tree.make_folder(home / "mine/below")
    for call in (
        {"op": "list", "path": "link", "after": "", "limit": 9, "hidden": True},
        {"op": "describe", "path": "link/secret"},
        {"op": "make_folder", "path": "link/new"},
        {"op": "move", "path": "link/secret", "target": "stolen", "overwrite": False},
        {"op": "move", "path": "mine", "target": "link/mine", "overwrite": False},
        {"op": "remove", "path": "link/secret", "recursive": False},
    ):
        try:
            tree.operation(call, lambda path: home / path, home)()
            codes.append("done")
        except files.FileRefused as error:
            codes.append(error.code)
    try:
        with archive.open_root(home / "link"):
            codes.append("opened")
    except files.FileRefused as error:
        codes.append(error.code)
about = (home / "mine/below").stat()
print(json.dumps([codes, about.st_uid, about.st_gid]))
"""
    (home / "locked").mkdir(mode=0o700)
    (home / "locked/secret").write_text("root's")
    (home / "link").symlink_to("locked")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program, str(home)], check=True, capture_output=True, cwd=root)
    assert json.loads(done.stdout) == [["permission"] * 7, USER, USER]
    assert (home / "locked/secret").read_text() == "root's"
