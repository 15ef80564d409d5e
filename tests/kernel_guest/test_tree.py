"""Folders of a session: listed in pages, described, made, moved and removed; links are never followed out of them."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_on_host import Guest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import (
    BadPath,
    FileExists,
    FileNotFound,
    FolderNotEmpty,
    GuestMisbehaved,
    GuestRefused,
    IsAFolder,
    NotAFolder,
)
from interpreter.kernel import tree
from interpreter.kernel.control import AgentControl
from interpreter.kernel.files import get_file
from interpreter.kernel.paths import MAX_NAME, MAX_PATH, check_path
from kernel_guest.files import FileRefused
from kernel_guest.tree import move as move_on_host

pytestmark = pytest.mark.machine


@pytest.fixture
def folder(guest: Guest, request: pytest.FixtureRequest) -> Path:
    """An empty folder in the home folder."""
    path = guest.home / str(abs(hash(request.node.nodeid)))
    path.mkdir()
    return path


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another file system than the home folder's."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


async def names(guest: Guest, path: str, **options: object) -> list[str]:
    page = await tree.list_folder(guest.control, path, **options)  # pyright: ignore[reportArgumentType]
    return [entry.name for entry in page.entries]


async def test_a_folder_is_listed_by_name_with_what_each_entry_is(guest: Guest, folder: Path) -> None:
    (folder / "b.txt").write_bytes(b"12345")
    (folder / "b.txt").chmod(0o640)
    (folder / "a").mkdir()
    (folder / "c").symlink_to("/etc/./passwd")
    os.mkfifo(folder / "d")
    page = await tree.list_folder(guest.control, folder.name)
    assert [(entry.name, entry.type, entry.target) for entry in page.entries] == [
        ("a", "folder", None),
        ("b.txt", "file", None),
        ("c", "link", "/etc/./passwd"),
        ("d", "other", None),
    ]
    file = page.entries[1]
    assert (file.size, file.mode, file.mime) == (5, 0o640, "text/plain")
    assert file.mtime_ns == (folder / "b.txt").stat().st_mtime_ns
    assert not page.more


async def test_five_thousand_entries_come_in_pages_that_miss_none(guest: Guest, folder: Path) -> None:
    for number in range(5000):
        (folder / f"entry {number}").touch()
    seen: list[str] = []
    more = True
    while more:
        page = await tree.list_folder(guest.control, folder.name, after=seen[-1] if seen else "", limit=700)
        seen += [entry.name for entry in page.entries]
        more = page.more
        assert not more or len(page.entries) == 700
    assert seen == sorted(f"entry {number}" for number in range(5000))


async def test_hidden_entries_are_left_out_when_not_asked_for(guest: Guest, folder: Path) -> None:
    for name in (".hidden", "seen"):
        (folder / name).touch()
    assert await names(guest, folder.name) == [".hidden", "seen"]
    assert await names(guest, folder.name, hidden=False) == ["seen"]


async def test_names_of_any_kind_are_listed_and_stay_apart(guest: Guest, folder: Path) -> None:
    strange = ["new\nline", "quo'te\"s", "back\\slash", "-rf", "ü🐍", " "]
    for name in strange:
        (folder / name).touch()
    for name in (b"bad\xff", b"bad\xfe"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).touch()
    assert await names(guest, folder.name) == sorted([*strange, "bad\udcff", "bad\udcfe"], key=os.fsencode)
    assert await names(guest, folder.name, after="bad\udcfe", limit=1) == ["bad\udcff"]
    for name in strange:
        assert (await tree.describe(guest.control, f"{folder.name}/{name}")).name == name


async def test_paging_goes_on_after_the_longest_name_there_can_be(guest: Guest, folder: Path) -> None:
    for last in (b"\xfd", b"\xfe", b"\xff"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + b"\xff" * 254 + last)).touch()
    seen: list[str] = []
    for _ in range(3):
        seen += await names(guest, folder.name, after=seen[-1] if seen else "", limit=1)
    assert seen == ["\udcff" * 254 + last for last in ("\udcfd", "\udcfe", "\udcff")]
    for after in ("\ud800", "x" * 1021):
        with pytest.raises(BadPath):
            await names(guest, folder.name, after=after)


async def test_listing_what_is_no_folder_says_so(guest: Guest, folder: Path) -> None:
    (folder / "file").touch()
    os.mkfifo(folder / "pipe")
    for name in ("file", "pipe", "file/below"):
        with pytest.raises(NotAFolder, match="could not be listed"):
            await tree.list_folder(guest.control, f"{folder.name}/{name}")
    with pytest.raises(FileNotFound):
        await tree.list_folder(guest.control, f"{folder.name}/missing")


async def test_a_link_is_described_and_not_followed(guest: Guest, folder: Path) -> None:
    (folder / "lost").symlink_to("nowhere")
    entry = await tree.describe(guest.control, f"{folder.name}/lost")
    assert (entry.name, entry.type, entry.target) == ("lost", "link", "nowhere")
    with pytest.raises(FileNotFound):
        await tree.describe(guest.control, f"{folder.name}/nowhere")


async def test_the_home_folder_and_the_root_have_names(guest: Guest) -> None:
    assert (await tree.describe(guest.control, ".")).name == guest.home.name
    assert (await tree.describe(guest.control, "/")).name == "/"


async def test_a_folder_is_made_with_those_on_the_way_and_twice(guest: Guest, folder: Path) -> None:
    for _ in range(2):
        entry = await tree.make_folder(guest.control, f"{folder.name}/a/b/c")
        assert (entry.name, entry.type, entry.mime) == ("c", "folder", "inode/directory")
    assert (folder / "a/b/c").is_dir()


async def test_a_folder_is_not_made_where_something_else_is(guest: Guest, folder: Path) -> None:
    (folder / "file").touch()
    (folder / "lost").symlink_to("nowhere")
    for name in ("file", "lost"):
        with pytest.raises(FileExists):
            await tree.make_folder(guest.control, f"{folder.name}/{name}")
    with pytest.raises(NotAFolder):
        await tree.make_folder(guest.control, f"{folder.name}/file/below")


async def test_a_move_replaces_only_when_asked_to(guest: Guest, folder: Path) -> None:
    (folder / "source").write_text("new")
    (folder / "target").write_text("old")
    source, target = f"{folder.name}/source", f"{folder.name}/target"
    with pytest.raises(FileExists):
        await tree.move(guest.control, source, target)
    assert (folder / "target").read_text() == "old"
    entry = await tree.move(guest.control, source, target, overwrite=True)
    assert (entry.name, entry.size) == ("target", 3)
    assert [path.name for path in folder.iterdir()] == ["target"]
    with pytest.raises(FileNotFound):
        await tree.move(guest.control, source, target)


async def test_a_move_does_not_enter_or_replace_a_folder(guest: Guest, folder: Path) -> None:
    (folder / "file").touch()
    (folder / "empty").mkdir()
    with pytest.raises(FileExists):
        await tree.move(guest.control, f"{folder.name}/file", f"{folder.name}/empty")
    for source in ("file", "full"):
        (folder / "full").mkdir(exist_ok=True)
        with pytest.raises(IsAFolder):
            await tree.move(guest.control, f"{folder.name}/{source}", f"{folder.name}/empty", overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "file", "full"]


async def test_a_folder_is_not_moved_into_itself_not_even_through_a_link(guest: Guest, folder: Path) -> None:
    (folder / "outer/inner").mkdir(parents=True)
    (folder / "link").symlink_to("outer/inner")
    for target in ("outer/inner/new", "outer/new", "link/new", "outer/inner/../new"):
        with pytest.raises(BadPath, match="into itself"):
            await tree.move(guest.control, f"{folder.name}/outer", f"{folder.name}/{target}")
    # Its name is the start of the other's, no more.
    await tree.move(guest.control, f"{folder.name}/outer", f"{folder.name}/outer2")
    assert (folder / "outer2/inner").is_dir()


async def test_moving_something_to_where_it_is_changes_nothing(guest: Guest, folder: Path) -> None:
    (folder / "file").write_text("kept")
    await tree.move(guest.control, f"{folder.name}/file", f"{folder.name}/../{folder.name}/file", overwrite=True)
    assert (folder / "file").read_text() == "kept"


async def test_a_link_is_moved_itself_and_replaced_itself(guest: Guest, folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / "link").symlink_to("kept")
    (folder / "file").write_text("x")
    await tree.move(guest.control, f"{folder.name}/link", f"{folder.name}/moved")
    assert (folder / "moved").is_symlink()
    await tree.move(guest.control, f"{folder.name}/file", f"{folder.name}/moved", overwrite=True)
    assert (folder / "moved").read_text() == "x"
    assert not list((folder / "kept").iterdir())


async def test_a_folder_moves_to_another_file_system_as_it_is(guest: Guest, folder: Path, elsewhere: Path) -> None:
    (folder / "tree/below").mkdir(parents=True)
    (folder / "tree/below/file").write_bytes(os.urandom(100_000))
    (folder / "tree/below/file").chmod(0o751)
    (folder / "tree/link").symlink_to("/etc/passwd")
    os.mkfifo(folder / "tree/pipe")
    content, about = (folder / "tree/below/file").read_bytes(), (folder / "tree/below/file").stat()
    await tree.move(guest.control, f"{folder.name}/tree", str(elsewhere / "moved"))
    assert not list(folder.iterdir())
    assert [path.name for path in elsewhere.iterdir()] == ["moved"]
    moved = (elsewhere / "moved/below/file").stat()
    assert (elsewhere / "moved/below/file").read_bytes() == content
    assert (moved.st_mode, moved.st_mtime_ns) == (about.st_mode, about.st_mtime_ns)
    assert (elsewhere / "moved/link").readlink() == Path("/etc/passwd")


def test_a_move_between_file_systems_that_fails_leaves_all_as_it_was(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    for name in ("a", "b"):
        (tmp_path / "tree" / name).write_text(name)
    (elsewhere / "target").write_text("before")
    copy, calls = shutil.copyfile, iter([None, OSError(28, "No space left on device")])

    def fail_on_the_second(source: Path, target: Path, *, follow_symlinks: bool) -> None:
        copy(source, target, follow_symlinks=follow_symlinks)
        if (failure := next(calls)) is not None:
            raise failure

    monkeypatch.setattr(shutil, "copyfile", fail_on_the_second)
    with pytest.raises(FileRefused) as refused:
        move_on_host(tmp_path / "tree", elsewhere / "new", overwrite=False, home=tmp_path / "home")
    assert refused.value.code == "no_space"
    assert sorted(path.name for path in (tmp_path / "tree").iterdir()) == ["a", "b"]
    assert [path.name for path in elsewhere.iterdir()] == ["target"]


async def test_only_an_empty_folder_is_removed_unless_all_of_it_is_meant(guest: Guest, folder: Path) -> None:
    (folder / "full/below").mkdir(parents=True)
    with pytest.raises(FolderNotEmpty):
        await tree.remove(guest.control, f"{folder.name}/full")
    await tree.remove(guest.control, f"{folder.name}/full/below")
    (folder / "full/file").touch()
    await tree.remove(guest.control, f"{folder.name}/full", recursive=True)
    assert not list(folder.iterdir())
    with pytest.raises(FileNotFound):
        await tree.remove(guest.control, f"{folder.name}/full", recursive=True)


async def test_links_are_removed_and_what_they_lead_to_stays(guest: Guest, folder: Path, elsewhere: Path) -> None:
    (elsewhere / "kept").write_text("kept")
    (folder / "full").mkdir()
    for name in ("link", "full/link"):
        (folder / name).symlink_to(elsewhere)
    await tree.remove(guest.control, f"{folder.name}/link/", recursive=True)
    await tree.remove(guest.control, f"{folder.name}/full", recursive=True)
    assert (elsewhere / "kept").read_text() == "kept"
    assert not list(folder.iterdir())


async def test_the_home_folder_is_neither_removed_nor_moved(guest: Guest, folder: Path) -> None:
    for path in ("/", ".", "..", f"{folder.name}/..", str(guest.home), str(guest.home.parent)):
        with pytest.raises(BadPath, match="home folder"):
            await tree.remove(guest.control, path, recursive=True)
        with pytest.raises(BadPath, match="home folder"):
            await tree.move(guest.control, path, "/dev/shm/away")
    assert folder.is_dir()


@pytest.mark.parametrize(
    "call",
    [
        {"op": "list", "path": "."},
        {"op": "list", "path": ".", "after": "", "limit": 0, "hidden": True},
        {"op": "list", "path": ".", "after": "", "limit": 1001, "hidden": True},
        {"op": "describe", "path": 5},
        {"op": "describe", "path": ""},
        {"op": "move", "path": "a", "target": "", "overwrite": False},
        {"op": "remove", "path": "a\0b", "recursive": False},
    ],
    ids=str,
)
async def test_a_call_that_is_not_whole_is_refused(guest: Guest, call: dict[str, object]) -> None:
    arguments = dict(call)
    with pytest.raises(GuestRefused) as refused:
        await guest.call(str(arguments.pop("op")), **arguments)
    assert refused.value.guest_code == "bad_request"


GOOD = {"name": "b", "type": "file", "size": 1, "mode": 0o644, "mtime_ns": 1, "target": None}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"entries": [GOOD]},
        {"entries": [], "more": True},
        {"entries": [GOOD, GOOD, GOOD], "more": False},
        {"entries": [{**GOOD, "name": "../b"}], "more": False},
        {"entries": [{**GOOD, "name": ".."}], "more": False},
        {"entries": [{**GOOD, "name": "a"}], "more": True},
        {"entries": [{**GOOD, "name": "c"}, GOOD], "more": False},
        {"entries": [{**GOOD, "name": b"../\xff"}], "more": False},
        {"entries": [{**GOOD, "name": b"\xff\0"}], "more": False},
        {"entries": [{**GOOD, "name": b"\xff" * 2000}], "more": False},
        {"entries": [{**GOOD, "name": b""}], "more": False},
        {"entries": [{**GOOD, "name": b"\xff"}, {**GOOD, "name": b"\xfe"}], "more": False},
        {"entries": [{**GOOD, "name": "c\ud800"}], "more": False},
        {"entries": [{**GOOD, "name": ["c"]}], "more": False},
        {"entries": [{**GOOD, "target": b"\xff" * 20_000}], "more": False},
        {"entries": [{**GOOD, "target": 5}], "more": False},
        {"entries": [{**GOOD, "size": -1}], "more": False},
        {"entries": [{**GOOD, "type": "door"}], "more": False},
        {"entries": [{**GOOD, "mode": "644"}], "more": False},
        {"entries": [5], "more": False},
        {"entries": {"a": 1}, "more": False},
    ],
    ids=lambda answer: repr(answer)[:120].encode("ascii", "backslashreplace").decode(),
)
async def test_a_listing_that_cannot_be_is_the_guests_fault(
    guest: Guest, answer: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(*_: object, **__: object) -> dict[str, object]:
        return answer

    monkeypatch.setattr(AgentControl, "call", call)
    with pytest.raises(GuestMisbehaved):
        await tree.list_folder(guest.control, ".", after="a", limit=2)


@pytest.mark.parametrize("path", ["", "a\0", "x" * (MAX_NAME + 1), "ü" * 128, "a/" * (MAX_PATH // 2) + "a", "\ud800"])
async def test_a_path_that_cannot_be_one_is_refused_before_it_is_sent(guest: Guest, path: str) -> None:
    for request in (tree.describe, tree.list_folder, tree.make_folder, tree.remove):
        with pytest.raises(BadPath):
            await request(guest.control, path)
    with pytest.raises(BadPath):
        await tree.move(guest.control, "a", path)
    with pytest.raises(BadPath):
        async with get_file(guest.connect, path):
            pass


@given(
    st.text(st.characters() | st.sampled_from("/\0\ud800a"), max_size=40)
    | st.text(st.sampled_from("aü/"), max_size=6000)
)
def test_a_path_is_taken_exactly_when_the_system_could_take_it(path: str) -> None:
    try:
        encoded = path.encode()
        fits = 0 < len(encoded) <= MAX_PATH and all(len(part) <= MAX_NAME for part in encoded.split(b"/"))
        good = fits and b"\0" not in encoded
    except UnicodeEncodeError:
        good = False
    if good:
        assert check_path(path) == path
    else:
        with pytest.raises(BadPath):
            check_path(path)


async def test_what_is_not_utf8_is_described_moved_listed_and_removed(guest: Guest, folder: Path) -> None:
    source, target = f"{folder.name}/caf\udce9", f"{folder.name}/\udcff/th\udce9"
    (folder / "caf\udce9").symlink_to("nowhere\udcfe")
    entry = await tree.describe(guest.control, source)
    assert (entry.name, entry.target) == ("caf\udce9", "nowhere\udcfe")
    await tree.make_folder(guest.control, f"{folder.name}/\udcff")
    assert (await tree.move(guest.control, source, target)).name == "th\udce9"
    assert await names(guest, f"{folder.name}/\udcff") == ["th\udce9"]
    with pytest.raises(FileExists, match=r"caf\\xe9 could not be moved .*xe9 is there already"):
        (folder / "caf\udce9").touch()
        await tree.move(guest.control, source, target)
    await tree.remove(guest.control, f"{folder.name}/\udcff", recursive=True)
    assert await names(guest, folder.name) == ["caf\udce9"]
