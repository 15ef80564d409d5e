"""Files pass in and out byte for byte; an upload is there as a whole or not at all; each refusal says why."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from guest_on_host import SECONDS, Guest, Kernel, pieces_of

from interpreter.errors import FileExists, GuestRefused, IsAFolder, NotAFolder, TransferError
from interpreter.kernel.files import PIECE, get_file, put_file
from interpreter.kernel.framing import FrameStream, open_service
from kernel_guest import files as guest_files
from kernel_guest.frames import Kind

pytestmark = pytest.mark.machine


async def get(guest: Guest, path: str) -> bytes:
    async with get_file(guest.connect, path) as file:
        content = b"".join([piece async for piece in file.pieces])
        assert file.size == len(content)
        return content


@pytest.mark.parametrize("announced", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("size", [0, 1, PIECE, 3 * 1024 * 1024 + 1])
async def test_what_is_put_comes_back(guest: Guest, size: int, announced: bool) -> None:
    content = os.urandom(size)
    pieces = [content[start : start + PIECE] for start in range(0, size, PIECE)]
    put = await put_file(guest.connect, "round-trip", pieces_of(*pieces), size=size if announced else None)
    assert put == size
    assert await get(guest, "round-trip") == content


async def test_code_in_the_kernel_sees_what_was_put_with_its_mode(guest: Guest, kernel: Kernel) -> None:
    await put_file(guest.connect, "script.sh", pieces_of(b"echo hello"), mode=0o755)
    code = (
        f"import subprocess\nprint(subprocess.check_output([{str(guest.home / 'script.sh')!r}], shell=True).decode())"
    )
    assert (await kernel.printed(code)).strip() == "hello"
    async with get_file(guest.connect, "script.sh") as file:
        assert (file.mode, file.mtime_ns) == (0o755, (guest.home / "script.sh").stat().st_mtime_ns)


async def test_folders_on_the_way_are_made(guest: Guest) -> None:
    await put_file(guest.connect, "a/b c/ü/file", pieces_of(b"deep"))
    assert (guest.home / "a/b c/ü/file").read_bytes() == b"deep"


async def test_an_absolute_path_is_taken_as_it_is(guest: Guest) -> None:
    await put_file(guest.connect, str(guest.home / "absolute"), pieces_of(b"here"))
    assert await get(guest, "absolute") == b"here"


async def test_a_name_of_the_greatest_length_can_be_written(guest: Guest) -> None:
    name = "🐍" * 63
    await put_file(guest.connect, name, pieces_of(b"long"))
    assert await get(guest, name) == b"long"


@pytest.mark.parametrize("size", [None, 4 * PIECE], ids=["size unknown", "size known"])
async def test_an_upload_that_breaks_off_leaves_what_was_there(guest: Guest, size: int | None) -> None:
    await put_file(guest.connect, "broken/file", pieces_of(b"before"))

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(PIECE)
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        await put_file(guest.connect, "broken/file", broken(), size=size)
    await settled(guest, "broken")
    assert await get(guest, "broken/file") == b"before"


async def test_an_upload_of_less_than_announced_leaves_nothing(guest: Guest) -> None:
    with pytest.raises(GuestRefused) as refusal:
        async with opened_put(guest, "short/file", size=100) as stream:
            stream.writer.write(b"x" * 99)
            stream.writer.write_eof()
            await stream.answer()
    assert refusal.value.guest_code == "size_mismatch"
    assert not list((guest.home / "short").iterdir())


async def test_an_upload_of_unknown_size_that_ends_without_its_end_leaves_nothing(guest: Guest) -> None:
    for ending in (b"", b"\0\0", b"\0\0\0\x09less"):
        with pytest.raises(GuestRefused) as refusal:
            async with opened_put(guest, "endless/file", size=None) as stream:
                stream.writer.write(b"\0\0\0\x05whole" + ending)
                stream.writer.write_eof()
                await stream.answer()
        assert refusal.value.guest_code == "size_mismatch"
    assert not list((guest.home / "endless").iterdir())


async def test_a_folder_is_refused_both_ways(guest: Guest) -> None:
    (guest.home / "folder").mkdir()
    with pytest.raises(TransferError, match="folder"):
        await put_file(guest.connect, "folder", pieces_of(b"x"))
    with pytest.raises(TransferError, match="not a regular file"):
        await get(guest, "folder")
    assert not list((guest.home / "folder").iterdir())


async def test_a_pipe_is_refused_and_does_not_hold_the_agent(guest: Guest) -> None:
    os.mkfifo(guest.home / "pipe")
    with pytest.raises(GuestRefused) as refusal:
        async with open_service(guest.connect, "get", path="pipe"):
            pass
    assert refusal.value.guest_code == "not_a_file"


@pytest.mark.parametrize(
    ("path", "code"), [("missing", "not_found"), ("", "bad_request"), ("a\0b", "bad_request"), ("x" * 300, "io_error")]
)
async def test_a_refused_path_says_why(guest: Guest, path: str, code: str) -> None:
    for service, arguments in (("get", {}), ("put", {"size": 0, "mode": 0o644})):
        if (service, code) == ("put", "not_found"):
            continue
        with pytest.raises(GuestRefused) as refusal:
            async with open_service(guest.connect, service, path=path, **arguments) as stream:
                await stream.answer()
        assert refusal.value.guest_code == code


async def test_a_file_in_the_way_of_a_folder_is_refused(guest: Guest) -> None:
    await put_file(guest.connect, "file", pieces_of(b"x"))
    for below in ("file/below", "file/far/below"):
        with pytest.raises(NotAFolder):
            await put_file(guest.connect, below, pieces_of(b"y"))
    assert await get(guest, "file") == b"x"


async def test_writing_to_a_link_writes_what_it_leads_to(guest: Guest) -> None:
    (guest.home / "elsewhere").mkdir()
    (guest.home / "link").symlink_to(guest.home / "elsewhere" / "target")
    # The second time the target is there.
    for content in (b"one", b"two"):
        await put_file(guest.connect, "link", pieces_of(content))
        assert (guest.home / "link").is_symlink()
        assert (guest.home / "elsewhere" / "target").read_bytes() == content
    assert [path.name for path in (guest.home / "elsewhere").iterdir()] == ["target"]


async def test_a_link_to_another_file_system_can_be_written_through(guest: Guest) -> None:
    target = Path("/dev/shm") / f"{guest.home.parent.name}-target"
    (guest.home / "far").symlink_to(target)
    try:
        await put_file(guest.connect, "far", pieces_of(b"far away"))
        assert target.read_bytes() == b"far away"
    finally:
        target.unlink(missing_ok=True)


async def test_links_in_a_circle_are_refused(guest: Guest) -> None:
    (guest.home / "circle").symlink_to(guest.home / "circle")
    with pytest.raises(TransferError, match="circle"):
        await put_file(guest.connect, "circle", pieces_of(b"x"))
    with pytest.raises(TransferError):
        await get(guest, "circle")


async def test_a_download_that_is_left_early_leaves_the_agent_well(guest: Guest) -> None:
    await put_file(guest.connect, "large", pieces_of(*[bytes(PIECE)] * 32))
    async with get_file(guest.connect, "large") as file:
        async for _ in file.pieces:
            break
    assert len(await get(guest, "large")) == 32 * PIECE


async def test_many_transfers_at_once_do_not_mix(guest: Guest) -> None:
    contents = {f"many/{number}": os.urandom(100_000) for number in range(20)}
    async with asyncio.TaskGroup() as group:
        for path, content in contents.items():
            group.create_task(put_file(guest.connect, path, pieces_of(content), size=len(content)))
    async with asyncio.TaskGroup() as group:
        tasks = {path: group.create_task(get(guest, path)) for path in contents}
    assert {path: task.result() for path, task in tasks.items()} == contents


def opened_put(guest: Guest, path: str, *, size: int | None) -> AbstractAsyncContextManager[FrameStream]:
    return open_service(guest.connect, "put", path=path, size=size, mode=0o644)


async def settled(guest: Guest, folder: str) -> None:
    """Wait until no part of an upload is left in a folder; the calls give the agent time to see the end."""
    async with asyncio.timeout(SECONDS):
        while len(list((guest.home / folder).iterdir())) != 1:
            await guest.call("ping")


@pytest.mark.parametrize("size", [None, 4], ids=["size unknown", "size known"])
async def test_empty_pieces_are_not_the_end(guest: Guest, size: int | None) -> None:
    await put_file(guest.connect, "gaps", pieces_of(b"", b"ab", b"", b"cd", b""), size=size)
    assert await get(guest, "gaps") == b"abcd"


async def test_of_many_that_must_not_overwrite_one_wins_and_is_whole(guest: Guest) -> None:
    contents = [bytes([number]) * 300_000 for number in range(8)]

    async def put(content: bytes) -> bool:
        pieces = pieces_of(content[:150_000], content[150_000:])
        try:
            await put_file(guest.connect, "race/file", pieces, size=len(content), overwrite=False)
        except FileExists:
            return False
        return True

    won = await asyncio.gather(*map(put, contents))
    assert won.count(True) == 1
    assert (guest.home / "race/file").read_bytes() == contents[won.index(True)]
    assert [path.name for path in (guest.home / "race").iterdir()] == ["file"]


async def test_a_link_that_leads_nowhere_is_not_overwritten_unasked(guest: Guest) -> None:
    (guest.home / "dangling").symlink_to(guest.home / "not-there")
    with pytest.raises(FileExists):
        await put_file(guest.connect, "dangling", pieces_of(b"x"), overwrite=False)
    assert not (guest.home / "not-there").exists()


def test_where_the_system_cannot_rename_so_a_name_is_taken_once_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old:
        def renameat2(self, *_: object) -> int:
            guest_files.ctypes.set_errno(guest_files.errno.EINVAL)
            return -1

    monkeypatch.setattr(guest_files, "_LIBC", Old())
    for content in ("first", "second"):
        (tmp_path / content).write_text(content)
    guest_files.rename(tmp_path / "first", tmp_path / "taken", overwrite=False)
    with pytest.raises(FileExistsError):
        guest_files.rename(tmp_path / "second", tmp_path / "taken", overwrite=False)
    assert (tmp_path / "taken").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["second", "taken"]


async def test_a_path_that_ends_as_a_folder_does_is_none_of_a_file(guest: Guest) -> None:
    with pytest.raises(IsAFolder):
        await put_file(guest.connect, "ends/", pieces_of(b"x"))
    assert not (guest.home / "ends").exists()


@pytest.mark.parametrize(("start", "count"), [(0, 0), (0, 5), (3, 4), (PIECE - 1, PIECE + 2), (2 * PIECE, 0)])
async def test_any_part_of_a_file_can_be_read(guest: Guest, start: int, count: int) -> None:
    content = os.urandom(2 * PIECE + 17)
    await put_file(guest.connect, "parts", pieces_of(content))
    async with get_file(guest.connect, "parts") as file:
        assert b"".join([piece async for piece in file.part(start, count)]) == content[start : start + count]
        assert file.ctime_ns == (guest.home / "parts").stat().st_ctime_ns


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 11), (11, 0), (5, 6), (True, "x")])
async def test_a_part_that_a_file_does_not_have_ends_the_stream(guest: Guest, start: object, count: object) -> None:
    await put_file(guest.connect, "ten", pieces_of(bytes(10)))
    async with open_service(guest.connect, "get", path="ten") as stream:
        await stream.send(Kind.CALL, {"start": start, "count": count})
        assert await stream.reader.read() == b""
    assert await get(guest, "ten") == bytes(10)


async def test_a_name_that_is_not_utf8_is_written_and_read(guest: Guest) -> None:
    name = os.fsdecode(b"caf\xe9/gr\xfcn.csv")
    await put_file(guest.connect, name, pieces_of(b"latin"))
    assert (guest.home / name).read_bytes() == b"latin"
    assert await get(guest, name) == b"latin"
    with pytest.raises(TransferError, match=r"caf\\xe9 could not be read"):
        await get(guest, os.fsdecode(b"caf\xe9"))
