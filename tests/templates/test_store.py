"""The store and its checks: published whole or not at all, found by name and hash; what was touched is noticed."""

import asyncio
import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from interpreter import DiskFull, HostError, SnapshotDamaged, TemplateNotFound
from interpreter.templates.definition import Definition
from interpreter.templates.manifest import MANIFEST, Manifest, record_file, write_json
from interpreter.templates.store import TemplateStore, disk_errors
from interpreter.templates.verify import verify_files


def publish(store: TemplateStore, name: str, content_hash: str) -> None:
    with store.build_folder() as folder:
        (folder / "rootfs").write_bytes(b"x")
        manifest = Manifest(
            name=name,
            content_hash=content_hash,
            created=datetime.now(UTC),
            definition=Definition(),  # type: ignore[call-arg]
            kernel_version="6",
            apt_packages={},
            python_packages={},
            build_seconds={},
            files={"rootfs": record_file(folder / "rootfs")},
        )
        write_json(manifest, folder / MANIFEST)
        store.publish(folder, manifest)


def test_a_build_is_found_by_name_and_by_hash(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "base", "a" * 64)
    assert store.find("base").manifest == store.find("a" * 12).manifest == store.list()["base"].manifest


def test_a_new_build_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "base", "a" * 64)
    publish(store, "base", "b" * 64)
    publish(store, "base", "b" * 64)
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["b" * 64]
    assert store.find("base").manifest.content_hash == "b" * 64


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "base", "a" * 64)
    store.remove("base")
    assert list((tmp_path / "built").iterdir()) == []
    with pytest.raises(TemplateNotFound):
        store.remove("base")


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    with pytest.raises(RuntimeError), store.build_folder() as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list((tmp_path / "built").iterdir()) == []


def test_leftovers_of_a_dead_process_are_swept(tmp_path: Path) -> None:
    left = tmp_path / "built" / ".building-999999999-abcd"
    left.mkdir(parents=True)
    with TemplateStore(tmp_path).build_folder() as folder:
        assert not left.exists()
        assert folder.exists()


async def test_only_one_at_a_time_builds_a_name(tmp_path: Path) -> None:
    store, order = TemplateStore(tmp_path), list[str]()
    first_in = asyncio.Event()

    async def first() -> None:
        async with store.lock("base"):
            first_in.set()
            await asyncio.wait({second_task}, timeout=0.3)
            order.append("first")

    async def second() -> None:
        await first_in.wait()
        async with store.lock("base"):
            order.append("second")

    second_task = asyncio.create_task(second())
    await asyncio.gather(first(), second_task)
    assert order == ["first", "second"]


def test_a_damaged_manifest_is_told_and_does_not_hide_the_others(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "one", "a" * 64)
    publish(store, "two", "b" * 64)
    (tmp_path / "built" / ("a" * 64) / MANIFEST).write_text("{}")
    with pytest.raises(SnapshotDamaged, match=r"manifest\.json is damaged"):
        store.find("one")
    assert list(store.list()) == ["two"]


def test_a_full_disk_is_disk_full_and_another_fault_is_a_host_error(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="INTERPRETER_HOME"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").touch()
    with pytest.raises(HostError), TemplateStore(tmp_path / "file").build_folder():
        pass


def test_a_touched_file_is_noticed_also_when_its_time_is_put_back(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(200_000) + b"x" * 1000)
    records = {"memory": record_file(path)}
    verify_files(tmp_path, records, hint="Build again")
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(200_500)
        file.write(b"y")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(SnapshotDamaged, match="memory was altered"):
        verify_files(tmp_path, records, hint="Build again")
    os.truncate(path, 1000)
    with pytest.raises(SnapshotDamaged, match="1000 bytes"):
        verify_files(tmp_path, records, hint="Build again")
    path.unlink()
    with pytest.raises(SnapshotDamaged, match="missing"):
        verify_files(tmp_path, records, hint="Build again")


def test_a_hole_and_written_zeros_have_one_digest(tmp_path: Path) -> None:
    hole, zeros = tmp_path / "hole", tmp_path / "zeros"
    with hole.open("wb") as file:
        file.truncate(1_000_000)
        file.seek(900_000)
        file.write(b"end")
        file.truncate(1_000_000)
    zeros.write_bytes(hole.read_bytes())
    assert record_file(hole) == record_file(zeros)
