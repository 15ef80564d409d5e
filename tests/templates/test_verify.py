"""Checks of built files: whatever was touched is noticed, also after a first good check; holes count as zeros."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter import SnapshotDamaged
from interpreter.templates.manifest import FileRecord, record_file
from interpreter.templates.verify import verify_files

KB = 1024


def alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(200_500)
        file.write(b"y")


def swap(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0], content[200_500] = content[200_500], content[0]
    path.write_bytes(content)


def another_in_its_place(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(201_000))
    other.replace(path)


def cut(path: Path) -> None:
    os.truncate(path, 1000)


def extend(path: Path) -> None:
    os.truncate(path, 300_000)


def build(folder: Path) -> dict[str, FileRecord]:
    (folder / "kernel").write_bytes(b"kernel")
    (folder / "memory").write_bytes(bytes(200_000) + b"x" * 1000)
    return {name: record_file(folder / name) for name in ("kernel", "memory")}


@pytest.mark.parametrize("checked_before", [False, True])
@pytest.mark.parametrize(
    ("touch", "told"),
    [
        (alter, "was altered"),
        (swap, "was altered"),
        (another_in_its_place, "was altered"),
        (cut, "has 1000 bytes"),
        (extend, "has 300000 bytes"),
        (Path.unlink, "is missing"),
    ],
)
def test_a_touched_file_is_noticed_also_when_its_time_is_put_back(
    tmp_path: Path, touch: Callable[[Path], None], told: str, checked_before: bool
) -> None:
    records, path = build(tmp_path), tmp_path / "memory"
    if checked_before:
        verify_files(tmp_path, records, hint="Build again")
    before = path.stat()
    touch(path)
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        with pytest.raises(SnapshotDamaged, match=f"memory {told}.*Build again"):
            verify_files(tmp_path, records, hint="Build again")


def test_a_change_in_the_same_tick_as_the_check_is_noticed(tmp_path: Path) -> None:
    # The clock of a file system moves in steps; of many tries some lie within one.
    path = tmp_path / "devices"
    for _ in range(50):
        path.write_bytes(b"good")
        records = {"devices": record_file(path)}
        verify_files(tmp_path, records, hint="")
        before = path.stat()
        with path.open("r+b") as file:
            file.write(b"evil")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(SnapshotDamaged, match="altered"):
            verify_files(tmp_path, records, hint="")


def test_files_as_built_pass_however_often_they_are_checked(tmp_path: Path) -> None:
    records = build(tmp_path)
    for _ in range(3):
        verify_files(tmp_path, records, hint="")
    os.utime(tmp_path / "memory")
    verify_files(tmp_path, records, hint="")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"memory": null}', b'{"memory": [1, 2]}'])
def test_a_damaged_note_of_what_was_checked_is_no_proof(tmp_path: Path, content: bytes) -> None:
    records = build(tmp_path)
    (tmp_path / ".checked.json").write_bytes(content)
    verify_files(tmp_path, records, hint="")
    (tmp_path / ".checked.json").write_bytes(content)
    alter(tmp_path / "memory")
    with pytest.raises(SnapshotDamaged):
        verify_files(tmp_path, records, hint="")


def in_memory(size: int, pieces: list[tuple[int, bytes]], *, zeros: bool) -> FileRecord:
    memory = os.memfd_create("file")
    try:
        if zeros:
            os.pwrite(memory, bytes(size), 0)
        os.ftruncate(memory, size)
        for offset, data in pieces:
            os.pwrite(memory, data, offset)
        return record_file(Path(f"/proc/self/fd/{memory}"))
    finally:
        os.close(memory)


@given(
    st.integers(400 * KB, 500 * KB),
    st.lists(st.tuples(st.integers(0, 380 * KB), st.binary(min_size=1, max_size=3000)), max_size=4),
)
def test_a_hole_and_written_zeros_have_one_digest(size: int, pieces: list[tuple[int, bytes]]) -> None:
    assert in_memory(size, pieces, zeros=False) == in_memory(size, pieces, zeros=True)


@given(st.integers(0, 300 * KB - 1), st.integers(0, 300 * KB - 1))
def test_the_place_of_a_byte_counts(one: int, other: int) -> None:
    first, second = (in_memory(300 * KB, [(place, b"x")], zeros=False) for place in (one, other))
    assert (first == second) is (one == other)
