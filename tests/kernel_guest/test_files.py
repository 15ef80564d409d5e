"""Files pass in and out byte for byte; an upload is there as a whole or not at all; each refusal says why."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from guest_on_host import SECONDS, Guest, Kernel, pieces_of

from interpreter.errors import GuestRefused, TransferError
from interpreter.kernel.files import PIECE, get_file, put_file
from interpreter.kernel.framing import FrameStream, open_service

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
    with pytest.raises(TransferError):
        await put_file(guest.connect, "file/below", pieces_of(b"y"))
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
