"""An archive of a folder holds what is in it and nothing from outside, and one that breaks off is never taken whole."""

import asyncio
import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pytest
from guest_on_host import SECONDS, Guest

from interpreter.errors import FileNotFound, GuestRefused, TransferError
from interpreter.kernel.archive import ArchiveFormat, open_archive
from interpreter.kernel.files import PIECE
from interpreter.kernel.framing import open_service
from kernel_guest import archive as guest_archive
from kernel_guest.archive import open_root, send_archive
from kernel_guest.frames import Frame, Kind, encode

pytestmark = pytest.mark.machine

FORMATS: tuple[ArchiveFormat, ...] = ("tar.gz", "tar", "zip")


@pytest.fixture
def folder(guest: Guest, request: pytest.FixtureRequest) -> Path:
    """An empty folder in the home folder."""
    path = guest.home / f"folder{abs(hash(request.node.nodeid))}"
    path.mkdir()
    return path


async def archived(guest: Guest, path: str, kind: ArchiveFormat) -> bytes:
    async with asyncio.timeout(SECONDS), open_archive(guest.connect, path, kind) as pieces:
        return b"".join([piece async for piece in pieces])


def unpacked(data: bytes, kind: ArchiveFormat) -> dict[str, bytes | str | None]:
    """Names to contents of files, targets of links and None for folders."""
    if kind == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            return {name: None if name.endswith("/") else archive.read(name) for name in archive.namelist()}
    found: dict[str, bytes | str | None] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz" if kind == "tar.gz" else "r:") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            found[member.name + "/" * member.isdir()] = file.read() if file else member.linkname or None
    return found


def in_process(path: Path, kind: str) -> bytes:
    """What the guest's code sends, without a guest."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open_root(path) as root, ours.makefile("rb") as reader:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * 1024 * 1024)
        send_archive(root, path, kind, theirs)
        data = b""
        while length := int.from_bytes(reader.read(4), "big"):
            data += reader.read(length)
    return data


@pytest.mark.parametrize("kind", FORMATS)
async def test_an_archive_holds_what_is_in_the_folder(guest: Guest, folder: Path, kind: ArchiveFormat) -> None:
    content = os.urandom(3 * PIECE + 7)
    (folder / "below/empty").mkdir(parents=True)
    (folder / "below/file").write_bytes(content)
    (folder / "zero").touch()
    found = unpacked(await archived(guest, folder.name, kind), kind)
    top = folder.name
    assert found == {
        f"{top}/": None,
        f"{top}/below/": None,
        f"{top}/below/empty/": None,
        f"{top}/below/file": content,
        f"{top}/zero": b"",
    }


@pytest.mark.parametrize("kind", FORMATS)
async def test_links_out_of_the_folder_bring_nothing_in(guest: Guest, folder: Path, kind: ArchiveFormat) -> None:
    (folder / "file").symlink_to("/etc/passwd")
    (folder / "folder").symlink_to("/etc")
    (folder / "circle").symlink_to(".")
    found = unpacked(await archived(guest, folder.name, kind), kind)
    links = {"file": "/etc/passwd", "folder": "/etc", "circle": "."}
    expected = {} if kind == "zip" else {f"{folder.name}/{name}": target for name, target in links.items()}
    assert found == {f"{folder.name}/": None, **expected}


@pytest.mark.parametrize("kind", FORMATS)
async def test_pipes_and_sockets_are_left_out_and_hold_nothing_up(
    guest: Guest, folder: Path, kind: ArchiveFormat
) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
        (folder / "file").write_bytes(b"kept")
        found = unpacked(await archived(guest, folder.name, kind), kind)
    assert found == {f"{folder.name}/": None, f"{folder.name}/file": b"kept"}


@pytest.mark.parametrize("kind", FORMATS)
async def test_names_of_any_kind_come_through(guest: Guest, folder: Path, kind: ArchiveFormat) -> None:
    names = ["new\nline", "quo'te\"s", "back\\slash", "-rf", "ü🐍", "x" * 255]
    for name in names:
        (folder / name).write_text(name)
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff")).write_text("bad")
    found = unpacked(await archived(guest, folder.name, kind), kind)
    bad = "bad\\xff" if kind == "zip" else "bad\udcff"
    expected: dict[str, bytes | None] = {f"{folder.name}/{name}": name.encode() for name in names}
    assert found == {**expected, f"{folder.name}/{bad}": b"bad", f"{folder.name}/": None}


@pytest.mark.parametrize("kind", FORMATS)
async def test_a_single_file_can_be_archived(guest: Guest, folder: Path, kind: ArchiveFormat) -> None:
    (folder / "one").write_bytes(b"single")
    os.utime(folder / "one", (0, 0))
    assert unpacked(await archived(guest, f"{folder.name}/one", kind), kind) == {"one": b"single"}


async def test_mode_and_time_of_files_are_kept(guest: Guest, folder: Path) -> None:
    (folder / "run").write_bytes(b"#!/bin/sh")
    (folder / "run").chmod(0o750)
    os.utime(folder / "run", (1_600_000_000, 1_600_000_000))
    data = await archived(guest, folder.name, "tar.gz")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.getmember(f"{folder.name}/run")
    assert (member.mode, member.mtime) == (0o750, 1_600_000_000)
    with zipfile.ZipFile(io.BytesIO(await archived(guest, folder.name, "zip"))) as archive:
        info = archive.getinfo(f"{folder.name}/run")
    assert (info.external_attr >> 16 & 0o777, info.date_time) == (0o750, (2020, 9, 13, 12, 26, 40))


async def test_what_is_not_there_or_no_file_is_refused(guest: Guest, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(FileNotFound, match="could not be archived"):
        await archived(guest, f"{folder.name}/missing", "zip")
    with pytest.raises(TransferError, match="not a regular file"):
        await archived(guest, f"{folder.name}/pipe", "zip")
    with pytest.raises(GuestRefused) as refused:
        async with open_service(guest.connect, "archive", path=folder.name, format="rar"):
            pass
    assert refused.value.guest_code == "bad_request"


async def test_an_archive_that_breaks_off_is_not_taken_for_whole() -> None:
    ok = encode(Frame(Kind.OK))
    for ending in (b"", b"\0\0", b"\0\0\0\x05half", b"\0\0\0\x04full"):
        kept: list[socket.socket] = []

        async def connect(
            _: int, ending: bytes = ending, kept: list[socket.socket] = kept
        ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            ours, theirs = socket.socketpair()
            theirs.sendall(ok + ending)
            theirs.shutdown(socket.SHUT_WR)
            kept.append(theirs)
            return await asyncio.open_connection(sock=ours)

        with pytest.raises(TransferError, match="broke off"):
            async with open_archive(connect, "any") as pieces:
                _ = [piece async for piece in pieces]
        kept[0].close()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("change", ["shrink", "grow", "vanish", "become a pipe"])
def test_what_changes_meanwhile_does_not_break_the_archive(
    tmp_path: Path, kind: ArchiveFormat, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"a" * 1000)
    (tmp_path / "b").write_bytes(b"b")
    find = guest_archive._item

    def changing(folder: int, entry: str, name: str) -> object:
        if entry == "a" and change in {"vanish", "become a pipe"}:
            (tmp_path / "a").unlink()
            if change == "become a pipe":
                os.mkfifo(tmp_path / "a")
        item = find(folder, entry, name)
        if entry == "a" and change in {"shrink", "grow"}:
            os.truncate(tmp_path / "a", 10 if change == "shrink" else 5000)
        return item

    monkeypatch.setattr(guest_archive, "_item", changing)
    found = unpacked(in_process(tmp_path, kind), kind)
    assert found.pop(f"{tmp_path.name}/b") == b"b"
    content = found.get(f"{tmp_path.name}/a")
    if change == "grow":
        assert content == b"a" * 1000
    elif change == "shrink":
        assert content == (b"a" * 10 if kind == "zip" else b"a" * 10 + bytes(990))
    else:
        assert content is None


def test_folders_deep_in_one_another_break_it_off_and_leave_nothing_open(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep /= "d"
        deep.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="too deep"):
        in_process(tmp_path, "tar")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_one_that_is_left_early_leaves_the_agent_well(guest: Guest, folder: Path) -> None:
    (folder / "large").write_bytes(os.urandom(16 * 1024 * 1024))
    for kind in FORMATS:
        async with open_archive(guest.connect, folder.name, kind) as pieces:
            async for _ in pieces:
                break
    (folder / "large").write_bytes(b"small")
    assert unpacked(await archived(guest, folder.name, "tar"), "tar")[f"{folder.name}/large"] == b"small"
