"""Guest memory and sparse copies: content and holes survive, and a loaded memory cannot be changed by anybody."""

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.vm.memory import copy_sparse, load_memory, new_memory, save_memory

MB = 1024 * 1024
pieces = st.lists(st.tuples(st.integers(0, 1023), st.binary(min_size=1, max_size=5000)), max_size=6)


@given(pieces)
def test_memory_that_is_saved_and_loaded_is_the_same(parts: list[tuple[int, bytes]]) -> None:
    memory, target = new_memory(4 * MB + 8192), os.memfd_create("file")
    try:
        for page, data in parts:
            os.pwrite(memory, data, page * 4096)
        save_memory(memory, target)
        loaded = load_memory(target)
        assert os.pread(loaded, 5 * MB, 0) == os.pread(memory, 5 * MB, 0)
        os.close(loaded)
    finally:
        os.close(memory)
        os.close(target)


def test_a_sparse_copy_keeps_holes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(1024 * MB)
        file.seek(500 * MB)
        file.write(b"data")
    with source.open("rb") as one, (tmp_path / "copy").open("w+b") as two:
        copy_sparse(one.fileno(), two.fileno())
        about = os.fstat(two.fileno())
        assert about.st_size == 1024 * MB
        assert about.st_blocks * 512 < MB
        assert os.pread(two.fileno(), 4, 500 * MB) == b"data"


def test_loaded_memory_is_sealed_but_can_be_mapped_privately(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"x" * 8192)
    with path.open("rb") as file:
        memory = load_memory(file.fileno())
    try:
        again = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
        with pytest.raises(PermissionError):
            os.pwrite(again, b"y", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(again, 8192, mmap.MAP_SHARED)
        with mmap.mmap(again, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
            private[0:1] = b"y"
        assert os.pread(memory, 1, 0) == b"x"
        os.close(again)
    finally:
        os.close(memory)
