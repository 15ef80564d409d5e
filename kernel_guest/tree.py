"""Folders and what is in them: list, describe, make, move and remove, with the rights of the thread that calls.

Names are bytes to the system; the host gets and gives them as text, and as bytes where they are not UTF-8. Nothing here
follows a link that lies at the end of a path, except to list the folder that it leads to.
"""

import errno
import heapq
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kernel_guest.files import FileRefused, on_wire, rename

MAX_PAGE = 1000
"""Most entries of one answer."""
_PAGE_BYTES = 2 * 1024 * 1024
"""Most bytes of names and links in one answer, about: the host takes no frame of much more."""


def operation(call: dict[str, Any], place: Callable[[str | bytes], Path], home: Path) -> Callable[[], dict[str, Any]]:
    """What a call of the host's asks for, to be run in a thread. Raises FileRefused when the call is not whole.

    ``place`` turns a path of the host's into one of the system's; ``home`` can be neither moved nor removed.
    """
    match call:
        case {
            "op": "list",
            "path": str() | bytes() as path,
            "after": str() | bytes() as after,
            "limit": int(limit),
            "hidden": bool(hidden),
        }:
            folder, before = place(path), os.fsencode(after)
            return lambda: list_folder(folder, after=before, limit=limit, hidden=hidden)
        case {"op": "describe", "path": str() | bytes() as path}:
            described = place(path)
            return lambda: describe(described)
        case {"op": "make_folder", "path": str() | bytes() as path}:
            made = place(path)
            return lambda: make_folder(made)
        case {
            "op": "move",
            "path": str() | bytes() as path,
            "target": str() | bytes() as target,
            "overwrite": bool(overwrite),
        }:
            source, end = place(path), place(target)
            return lambda: move(source, end, overwrite=overwrite, home=home)
        case {"op": "remove", "path": str() | bytes() as path, "recursive": bool(recursive)}:
            removed = place(path)
            return lambda: remove(removed, recursive=recursive, home=home)
        case _:
            raise FileRefused("bad_request", f"{call.get('op')!r} does not have these arguments")


def list_folder(path: Path, *, after: bytes, limit: int, hidden: bool) -> dict[str, Any]:
    """The first ``limit`` entries by name that come after ``after``, and whether there are more. Raises FileRefused."""
    if not 1 <= limit <= MAX_PAGE:
        raise FileRefused("bad_request", f"a page has 1 to {MAX_PAGE} entries")
    try:
        # O_NONBLOCK is for what is no folder: opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            while True:
                # Only the page is kept, however many there are.
                names = heapq.nsmallest(limit + 1, _names(descriptor, after, hidden=hidden))
                more = len(names) > limit
                entries, left = list[dict[str, Any]](), _PAGE_BYTES
                for name in names[:limit]:
                    if (entry := _entry_in(descriptor, os.fsdecode(name))) is None:
                        continue
                    entries.append(entry)
                    left -= len(name) + len(os.fsencode(entry["target"] or ""))
                    if left < 0:
                        return {"entries": entries, "more": True}
                if entries or not more:
                    return {"entries": entries, "more": more}
                # All of the page has vanished since its names were read; an empty page could not be gone on from.
                after = names[limit - 1]
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FileRefused.of(error) from error


def describe(path: Path) -> dict[str, Any]:
    """The entry at ``path``, which may be a link that leads nowhere. Raises FileRefused."""
    try:
        about = os.lstat(path)
        name = path.name if path.name not in {"", ".."} else Path(os.path.realpath(path)).name or "/"
        # Not Path.readlink: the target is told as it is written.
        target = os.readlink(path) if stat.S_ISLNK(about.st_mode) else None  # noqa: PTH115
        return _entry(name, about, target)
    except OSError as error:
        raise FileRefused.of(error) from error


def make_folder(path: Path) -> dict[str, Any]:
    """Make a folder and those on the way to it; one that is there already will do. Raises FileRefused."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileRefused.of(error) from error
    return describe(path)


def move(source: Path, target: Path, *, overwrite: bool, home: Path) -> dict[str, Any]:
    """Move a file, link or folder to be ``target``, whole or not at all. Raises FileRefused.

    A folder at ``target`` is refused, neither entered nor replaced; anything else there only ``overwrite`` replaces.
    """
    try:
        about = os.lstat(source)
        start, end = _without_links(source), _without_links(target)
        if stat.S_ISDIR(about.st_mode):
            _refuse_home(source, home, "moved")
            if end != start and end.is_relative_to(start):
                raise FileRefused("bad_request", "a folder cannot be moved into itself")
        if os.path.lexists(target):
            if not overwrite:
                raise FileRefused("exists", f"{target} is there already")
            if start == end:
                return describe(target)
            if stat.S_ISDIR(os.lstat(target).st_mode):
                raise FileRefused("is_a_directory", f"{target} is a folder")
        try:
            rename(source, target, overwrite=overwrite)
        except OSError as error:
            # Also a folder that an overlay has from below: it is copied up piece by piece.
            if error.errno != errno.EXDEV:
                raise
            _move_by_copy(source, target, overwrite=overwrite)
    except OSError as error:
        raise FileRefused.of(error) from error
    except RecursionError:
        raise FileRefused("io_error", "its folders lie too deep in one another") from None
    return describe(target)


def remove(path: Path, *, recursive: bool, home: Path) -> dict[str, Any]:
    """Remove a file or link, or a folder: an empty one, or with ``recursive`` any. Raises FileRefused."""
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            path.unlink()
        else:
            _refuse_home(path, home, "removed")
            if recursive:
                _remove_tree(path)
            else:
                path.rmdir()
    except OSError as error:
        raise FileRefused.of(error) from error
    except RecursionError:
        raise FileRefused("io_error", "its folders lie too deep in one another") from None
    return {}


def _names(descriptor: int, after: bytes, *, hidden: bool) -> Iterator[bytes]:
    with os.scandir(descriptor) as entries:
        for entry in entries:
            # In the order of their bytes, which is that of the characters as well.
            name = os.fsencode(entry.name)
            if name > after and (hidden or not name.startswith(b".")):
                yield name


def _entry_in(folder: int, name: str) -> dict[str, Any] | None:
    try:
        about = os.stat(name, dir_fd=folder, follow_symlinks=False)
        return _entry(name, about, os.readlink(name, dir_fd=folder) if stat.S_ISLNK(about.st_mode) else None)
    except OSError:
        # It has vanished, or become something else, since the names were read.
        return None


def _entry(name: str, about: os.stat_result, target: str | None) -> dict[str, Any]:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return {
        "name": on_wire(name),
        "type": kinds.get(stat.S_IFMT(about.st_mode), "other"),
        "size": about.st_size,
        "mode": stat.S_IMODE(about.st_mode),
        "mtime_ns": about.st_mtime_ns,
        "target": None if target is None else on_wire(target),
    }


def _without_links(path: Path) -> Path:
    """Where the entry itself lies: links on the way are followed, one at the end is not."""
    if path.name in {"", ".."}:
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _refuse_home(path: Path, home: Path, what: str) -> None:
    if Path(os.path.realpath(home)).is_relative_to(os.path.realpath(path)):
        raise FileRefused("bad_request", f"the home folder and those around it cannot be {what}")


def _move_by_copy(source: Path, target: Path, *, overwrite: bool) -> None:
    _check_removable(source)
    partial = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        _copy(source, partial)
        rename(partial, target, overwrite=overwrite)
    except BaseException:
        if os.path.lexists(partial):
            remove(partial, recursive=True, home=partial.parent)
        raise
    remove(source, recursive=True, home=target.parent)


def _check_removable(source: Path) -> None:
    """Find out before anything is copied that the original could not be removed. Raises OSError."""
    folders = [source.parent]
    if stat.S_ISDIR(os.lstat(source).st_mode):

        def stop(error: OSError) -> None:
            raise error

        folders += [Path(folder) for folder, _, _ in os.walk(source, onerror=stop)]
    for folder in folders:
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def _copy(source: Path, target: Path) -> None:
    mode = os.lstat(source).st_mode
    if stat.S_ISLNK(mode):
        target.symlink_to(os.readlink(source))  # noqa: PTH115  (as it is written)
    elif stat.S_ISDIR(mode):
        target.mkdir(mode=0o700)
        with os.scandir(source) as entries:
            for entry in entries:
                _copy(source / entry.name, target / entry.name)
    elif stat.S_ISREG(mode):
        shutil.copyfile(source, target, follow_symlinks=False)
    elif stat.S_ISFIFO(mode):
        os.mkfifo(target)
    else:
        raise FileRefused("io_error", f"{source} is neither file, folder, link nor pipe")
    # Last: a folder that may not be written to could not be filled.
    shutil.copystat(source, target, follow_symlinks=False)


def _remove_tree(path: Path) -> None:
    def go_on(_: object, __: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
        # What somebody else removes meanwhile is gone as it should be.
        if not isinstance(failure[1], FileNotFoundError):
            raise failure[1]

    # It holds on to each folder by descriptor: a link that takes a folder's place meanwhile is not followed.
    shutil.rmtree(path, onerror=go_on)
