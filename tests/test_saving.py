"""What is saved is there whole or not at all; links and what is no file are written to, never replaced."""

import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from interpreter.saving import save


async def pieces_of(*pieces: bytes, error: Exception | None = None) -> AsyncGenerator[bytes]:
    for piece in pieces:
        yield piece
    if error:
        raise error


async def test_a_file_is_saved_whole(tmp_path: Path) -> None:
    await save(pieces_of(b"a" * 300_000, b"", b"b"), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"a" * 300_000 + b"b"


async def test_the_longest_name_can_be_saved(tmp_path: Path) -> None:
    await save(pieces_of(b"x"), tmp_path / ("🐍" * 63))
    assert [path.name for path in tmp_path.iterdir()] == ["🐍" * 63]


async def test_what_breaks_off_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(RuntimeError):
        await save(pieces_of(b"half", error=RuntimeError()), tmp_path / "file")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


async def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far/file")
    await save(pieces_of(b"x"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far/file").read_bytes() == b"x"


async def test_a_device_stays_one() -> None:
    await save(pieces_of(b"x"), Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


async def test_an_open_descriptor_gets_the_pieces(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"first ")
        log.flush()
        await save(pieces_of(b"second", b" third"), log.fileno())
    assert (tmp_path / "log").read_bytes() == b"first second third"


@pytest.mark.parametrize("name", ["missing/file", "file/below", "."])
async def test_where_nothing_can_be_saved_is_an_error_of_the_system(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="directory"):
        await save(pieces_of(b"x"), tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
