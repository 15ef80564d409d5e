"""The state folder after a service has run sessions: nothing in it is for others, whatever the umask was."""

import os
import stat
from pathlib import Path

from served import own_home, serve

from interpreter import Engine, Settings


async def test_nothing_of_a_service_is_for_others(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    home = own_home(settings, tmp_path / "home")
    home.chmod(0o755)
    before = os.umask(0)
    try:
        async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256)) as api:
            session_id = await api.new(env={"TOKEN": "hunter2"})
            await api.run(session_id, "open('x', 'w').write('x' * 100_000)")
            while_it_runs = open_to_others(home)
            names = {path.name for path in home.rglob("*")}
    finally:
        os.umask(before)
    assert {"service.lock", "service.sqlite", "service.sqlite-wal", "machines"} <= names
    assert while_it_runs == open_to_others(home) == []


def open_to_others(home: Path) -> list[str]:
    """What others may read, write or enter; sockets are guarded by the folder that they are in."""
    found: list[str] = []
    for path in (home, *home.rglob("*")):
        mode = path.lstat().st_mode
        if not (stat.S_ISLNK(mode) or stat.S_ISSOCK(mode)) and mode & 0o077:
            found.append(f"{path.relative_to(home)} {stat.S_IMODE(mode):o}")
    return found
