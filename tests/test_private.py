"""State that only its owner can read, also under a umask that would give it to everybody."""

import os
import stat
from collections.abc import Generator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from interpreter import ConfigurationError
from interpreter.private import new_private, private_folder, private_home, write_private


@pytest.fixture(autouse=True)
def generous() -> Generator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_and_files_are_closed_from_the_first_moment(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b" / "home"
    private_home(home)
    assert {mode(folder) for folder in (home, home.parent, home.parent.parent)} == {0o700}
    private_folder(home / "c" / "d")
    assert {mode(home / "c"), mode(home / "c" / "d")} == {0o700}
    with new_private(home / "file"):
        assert mode(home / "file") == 0o600
    write_private(home / "text", "one")
    write_private(home / "text", "two")
    assert (mode(home / "text"), (home / "text").read_text()) == (0o600, "two")
    assert sorted(path.name for path in home.iterdir()) == ["c", "file", "text"]


@pytest.mark.parametrize("held", [[], ["templates"], ["service.sqlite", "notes.txt"]])
def test_an_open_state_folder_is_closed_and_that_is_told(tmp_path: Path, held: list[str]) -> None:
    home = tmp_path / "home"
    home.mkdir(0o755)
    for name in held:
        (home / name).touch()
    with capture_logs() as logged:
        private_home(home)
        assert mode(home) == 0o700
        private_home(home)
    # Once: the second time it is closed.
    (told,) = logged
    assert "open to other users" in told["event"]


@pytest.mark.parametrize(("bits", "held"), [(0o755, ["report.odt"]), (0o1777, []), (0o1777, ["templates"])])
def test_what_is_not_ours_is_not_closed(tmp_path: Path, bits: int, held: list[str]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(bits)
    for name in held:
        (home / name).touch()
    with pytest.raises(ConfigurationError, match="a folder of its own"):
        private_home(home)
    assert stat.S_IMODE(home.stat().st_mode) == bits & 0o777 | bits & 0o1000
