"""The initramfs: an archive in cpio's newc form, the same for the same input; drivers after what they need."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter import TemplateBuildFailed
from interpreter.templates.initramfs import Entry, cpio, load_order

names = st.from_regex(r"[a-z]{1,12}", fullmatch=True)


@given(st.dictionaries(names, st.binary(max_size=300), max_size=5))
def test_the_archive_holds_what_was_put_in(files: dict[str, bytes]) -> None:
    archive = cpio({name: Entry(0o100644, content) for name, content in files.items()})
    assert archive == cpio({name: Entry(0o100644, content) for name, content in reversed(files.items())})
    found: dict[str, bytes] = {}
    place = 0
    while True:
        head = archive[place : place + 110]
        assert head[:6] == b"070701"
        size, length = int(head[54:62], 16), int(head[94:102], 16)
        name = archive[place + 110 : place + 109 + length].decode()
        start = place + (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        found[name] = archive[start : start + size]
        place = start + (size + 3) // 4 * 4
    assert found == files


def module(folder: Path, name: str, needs: str) -> Path:
    path = folder / f"{name}.ko"
    path.write_bytes(b"ELF\0depends=" + needs.encode() + b"\0rest")
    return path


def test_drivers_come_after_what_they_need(tmp_path: Path) -> None:
    files = {name: module(tmp_path, name, needs) for name, needs in {"c": "b,a", "b": "a", "a": "", "d": ""}.items()}
    assert [path.stem for path in load_order(files, ["c", "d"])] == ["a", "b", "c", "d"]


def test_a_driver_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TemplateBuildFailed, match="virtio_blk"):
        load_order({}, ["virtio_blk"])
