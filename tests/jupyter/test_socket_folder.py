"""Folders of sockets: for their owner alone, kept while they are used, removed when they are not, and nobody else's."""

import multiprocessing
import os
import stat
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from interpreter.jupyter.endpoints import MAX_UNIX_PATH, endpoints_in
from interpreter.jupyter.folder import socket_folder
from kernel_guest.frames import CHANNELS


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_only_its_owner_may_enter_and_it_is_removed() -> None:
    with socket_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "kernel-1").touch()
    assert not folder.exists()


def test_those_in_use_stay_and_those_left_behind_go(parent: Path) -> None:
    for name in ("interpreter-kernel-empty", "interpreter-kernel-full"):
        (parent / name).mkdir()
    (parent / "interpreter-kernel-full" / "kernel-1").touch()
    with socket_folder() as one, socket_folder() as other:
        assert set(parent.iterdir()) == {one, other}


def test_what_is_no_folder_of_sockets_is_left_alone(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "file").touch()
    (parent / "interpreter-kernel-link").symlink_to(other)
    (parent / "interpreter-kernel-file").touch()
    (parent / "mine").mkdir()
    with socket_folder():
        assert (other / "file").exists()
        names = {path.name for path in parent.iterdir()}
        assert {"interpreter-kernel-link", "interpreter-kernel-file", "mine"} < names


def test_a_long_path_of_temporary_files_is_not_used(monkeypatch: pytest.MonkeyPatch, parent: Path) -> None:
    long = parent / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with socket_folder() as folder:
        assert all(len(os.fsencode(endpoints_in(folder).path(channel))) <= MAX_UNIX_PATH for channel in CHANNELS)


def _many(parent: str) -> bool:
    tempfile.tempdir = parent
    for _ in range(50):
        with ExitStack() as stack:
            folders = [stack.enter_context(socket_folder()) for _ in range(3)]
            if not all(folder.is_dir() for folder in folders):
                return False
    return True


def test_processes_that_make_them_at_once_do_not_take_each_others(parent: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert all(pool.map(_many, [str(parent)] * 2, chunksize=1))
    assert list(parent.iterdir()) == []
