"""The initramfs: an archive in cpio's newc form, the same for the same input; drivers after what they need."""

import gzip
import lzma
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from interpreter import TemplateBuildFailed
from interpreter.templates.initramfs import MODULES, Entry, cpio, load_order, make_initramfs

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


def unpack(archive: bytes, folder: Path) -> None:
    command = ["cpio", "--extract", "--quiet", "--no-absolute-filenames", "--make-directories"]
    subprocess.run(command, input=archive, cwd=folder, check=True)


contents = st.dictionaries(names, st.binary(max_size=300) | st.dictionaries(names, st.binary(max_size=50)), max_size=5)


@hypothesis_settings(max_examples=20, deadline=None)
@given(contents)
def test_the_cpio_program_extracts_what_was_put_in(tree: dict[str, bytes | dict[str, bytes]]) -> None:
    entries: dict[str, Entry] = {}
    for name, content in tree.items():
        if isinstance(content, bytes):
            entries[name] = Entry(0o100755, content)
        else:
            entries[name] = Entry(0o040755)
            entries |= {f"{name}/{inner}": Entry(0o100644, data) for inner, data in content.items()}
    with tempfile.TemporaryDirectory() as folder:
        unpack(cpio(entries), Path(folder))
        found = {str(path.relative_to(folder)): path for path in Path(folder).rglob("*")}
        assert found.keys() == entries.keys()
        for name, entry in entries.items():
            assert found[name].stat().st_mode == entry.mode
            assert found[name].is_dir() or found[name].read_bytes() == entry.content


def kernel_tree(folder: Path) -> Path:
    modules = folder / "tree" / "usr" / "lib" / "modules" / "6.1" / "kernel"
    modules.mkdir(parents=True)
    for name in MODULES:
        module(modules, name.replace("_", "-"), "virtio" if name.startswith("virtio") else "")
    packed = modules / "virtio.ko.xz"
    packed.write_bytes(lzma.compress(b"ELF\0depends=\0rest"))
    return folder / "tree"


def test_the_image_holds_init_busybox_and_the_drivers_unpacked_in_order(tmp_path: Path) -> None:
    tree, busybox, out = kernel_tree(tmp_path), tmp_path / "busybox", tmp_path / "out"
    busybox.write_bytes(b"busybox")
    out.mkdir()
    image = make_initramfs(tree, busybox, b"#!init")
    unpack(gzip.decompress(image), out)
    order = (out / "modules" / "order").read_text().split()
    assert order[0] == "virtio.ko"
    assert sorted(order) == sorted([*(f"{name}.ko" for name in MODULES), "virtio.ko"])
    assert (out / "modules" / "virtio.ko").read_bytes() == b"ELF\0depends=\0rest"
    assert (out / "init").read_bytes() == b"#!init"
    assert os.access(out / "init", os.X_OK)
    assert (out / "bin" / "busybox").read_bytes() == b"busybox"
    assert make_initramfs(tree, busybox, b"#!init") == image


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef")), min_size=1))
def test_any_graph_of_needs_is_ordered(graph: dict[str, list[str]]) -> None:
    # Only needs on later letters, so that there is no circle.
    needs = {name: [need for need in of if need > name] for name, of in graph.items()}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: module(Path(folder), name, ",".join(of)) for name, of in needs.items()}
        order = [path.stem for path in load_order(files, files)]
    assert sorted(order) == sorted(files)
    for name, of in needs.items():
        assert all(order.index(need) < order.index(name) for need in of if need in files)


def test_needs_in_a_circle_end(tmp_path: Path) -> None:
    files = {"a": module(tmp_path, "a", "b"), "b": module(tmp_path, "b", "a")}
    assert sorted(path.stem for path in load_order(files, ["a"])) == ["a", "b"]
