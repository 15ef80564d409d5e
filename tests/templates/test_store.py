"""The store: builds are published whole or not at all, found by name and by hash, and built by one at a time."""

import asyncio
import errno
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from interpreter import DiskFull, HostError, SnapshotDamaged, TemplateNotFound
from interpreter.templates.definition import Definition
from interpreter.templates.manifest import MANIFEST, Manifest, record_file, write_json
from interpreter.templates.store import TemplateStore, disk_errors


def publish(store: TemplateStore, name: str, content_hash: str) -> None:
    with store.build_folder() as folder:
        (folder / "rootfs").write_bytes(b"x")
        (folder / "snapshot").mkdir()
        (folder / "snapshot" / "memory").write_bytes(b"x")
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


def test_nobody_else_can_read_a_build_at_any_time(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = TemplateStore(tmp_path / "home" / "templates")
        with store.build_folder() as folder:
            assert {stat.S_IMODE(one.stat().st_mode) for one in (folder, *folder.parents[:3])} == {0o700}
        publish(store, "base", "a" * 64)
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "home").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert len(modes) > 4


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


def test_what_is_not_built_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(TemplateNotFound, match="interpreter template build base"):
        TemplateStore(tmp_path).find("base")
    assert TemplateStore(tmp_path).list() == {}


def test_a_hash_that_is_too_short_or_fits_two_builds_finds_none(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "one", "a" * 12 + "b" * 52)
    publish(store, "two", "a" * 12 + "c" * 52)
    assert store.find("a" * 12 + "b").manifest.name == "one"
    for prefix in ("a" * 11, "a" * 12):
        with pytest.raises(TemplateNotFound):
            store.find(prefix)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "/etc/passwd"])
def test_a_name_that_is_a_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TemplateNotFound):
        TemplateStore(tmp_path).find(name)
    with pytest.raises(TemplateNotFound):
        TemplateStore(tmp_path).remove(name)


def test_a_build_with_two_names_stays_until_both_are_removed(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "one", "a" * 64)
    publish(store, "two", "a" * 64)
    store.remove("one")
    assert list(store.list()) == ["two"]
    store.remove("two")
    assert list((tmp_path / "built").iterdir()) == []


def test_a_name_file_that_holds_a_path_finds_nothing(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    publish(store, "base", "a" * 64)
    (tmp_path / "names" / "base").write_text("../../etc")
    with pytest.raises(TemplateNotFound):
        store.find("base")


def test_a_build_that_another_process_is_at_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "built" / f".building-{os.getppid()}-abcd"
    theirs.mkdir(parents=True)
    with TemplateStore(tmp_path).build_folder():
        assert theirs.exists()


def test_a_full_disk_while_building_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DiskFull), TemplateStore(tmp_path).build_folder() as folder:
        (folder / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list((tmp_path / "built").iterdir()) == []


async def test_a_cancelled_holder_and_a_cancelled_waiter_free_the_lock(tmp_path: Path) -> None:
    store = TemplateStore(tmp_path)
    held = asyncio.Event()

    async def hold() -> None:
        async with store.lock("base"):
            held.set()
            await asyncio.Event().wait()

    holder = asyncio.create_task(hold())
    await held.wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), store.lock("base"):
            pytest.fail("held twice")
    async with store.lock("other"):
        pass
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    async with store.lock("base"):
        pass
