"""The folder of built templates: found by name or content hash, published whole or not at all.

``built/HASH/`` holds a build, ``names/NAME`` the hash that a name stands for. A build is made in a folder of its
own beside them and renamed when it is complete.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.errors import (
    DiskFull,
    HostError,
    SnapshotDamaged,
    TemplateError,
    TemplateNotFound,
    TemplateOutdated,
)
from interpreter.private import private_folder, write_private
from interpreter.templates.definition import check_name
from interpreter.templates.manifest import MANIFEST, Manifest, read_json

_HASH: Final = re.compile(r"[0-9a-f]{12,64}")
_LOCK_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class BuiltTemplate:
    """A build, where it lies."""

    folder: Path
    manifest: Manifest


class TemplateStore:
    """The built templates under one folder."""

    def __init__(self, home: Path) -> None:
        self._built = home / "built"
        self._names = home / "names"
        self._locks = home / "locks"

    def find(self, name: str) -> BuiltTemplate:
        """The build of a name, or of a content hash (12 digits suffice).

        Raises TemplateNotFound, TemplateOutdated, SnapshotDamaged.
        """
        folder = self._folder_of(name)
        try:
            built = BuiltTemplate(folder, read_json(Manifest, folder / MANIFEST))
        except FileNotFoundError:
            raise _not_built(name) from None
        except TemplateOutdated as error:
            raise TemplateOutdated(error.message, hint=renew_hint(name)) from None
        except SnapshotDamaged as error:
            raise SnapshotDamaged(error.message, hint=rebuild_hint(name)) from None
        if built.manifest.content_hash != folder.name:
            raise SnapshotDamaged(f"{folder} holds the manifest of another build", hint=rebuild_hint(name))
        return built

    def names(self) -> list[str]:
        """All names that stand for a build, whatever has become of that."""
        if not self._names.is_dir():
            return []
        # One that begins with a dot is being written.
        return sorted(path.name for path in self._names.iterdir() if not path.name.startswith("."))

    def list(self) -> dict[str, BuiltTemplate]:
        """All names that are built; one with a damaged manifest counts as not built."""
        found: dict[str, BuiltTemplate] = {}
        for name in self.names():
            with contextlib.suppress(TemplateError):
                found[name] = self.find(name)
        return found

    def publish(self, folder: Path, manifest: Manifest) -> BuiltTemplate:
        """Take a complete build over and let its name stand for it."""
        target = self._built / manifest.content_hash
        if target.exists():
            self._discard(target)
        _close_to_others(folder)
        _sync_folder(folder)
        folder.rename(target)
        private_folder(self._names)
        previous = self._hash_of(manifest.name)
        write_private(self._names / manifest.name, manifest.content_hash)
        if previous not in (None, manifest.content_hash):
            self._remove_unnamed(str(previous))
        return BuiltTemplate(target, manifest)

    def remove(self, name: str) -> None:
        """Forget a name, and its build when no other name stands for it. Sessions that run go on."""
        content = self._hash_of(name)
        # Not what its manifest says: that may be damaged, or of another version.
        if not self._folder_of(name).is_dir():
            raise _not_built(name)
        (self._names / name).unlink(missing_ok=True)
        self._remove_unnamed(content or self._folder_of(name).name)

    @contextmanager
    def build_folder(self) -> Generator[Path]:
        """A new folder to build in; what is left in it at the end is removed. Raises DiskFull, HostError."""
        with disk_errors(self._built):
            private_folder(self._built)
            self._sweep()
            folder = self._built / f".building-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            folder.mkdir(mode=0o700)
            try:
                yield folder
            finally:
                if folder.exists():
                    self._discard(folder)

    @asynccontextmanager
    async def lock(self, name: str) -> AsyncGenerator[None]:
        """Hold the one right to build a name, among all processes on this host."""
        with disk_errors(self._locks):
            private_folder(self._locks)
            descriptor = os.open(self._locks / check_name(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # A lock has no event to wait for, and a thread that blocks on it could not be interrupted.
                    await asyncio.sleep(_LOCK_LOOK_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def _folder_of(self, name: str) -> Path:
        if (content := self._hash_of(name)) is not None:
            return self._built / content
        if _HASH.fullmatch(name):
            matches = list(self._built.glob(f"{name}*"))
            if len(matches) == 1:
                return matches[0]
        return self._built / "missing"

    def _hash_of(self, name: str) -> str | None:
        check_name(name)
        try:
            content = (self._names / name).read_text(encoding="ascii")
        except OSError:
            return None
        return content if _HASH.fullmatch(content) else None

    def _remove_unnamed(self, content: str) -> None:
        names = list(self._names.iterdir()) if self._names.is_dir() else []
        if content not in {path.read_text(encoding="ascii") for path in names}:
            self._discard(self._built / content)

    def _discard(self, folder: Path) -> None:
        # Renamed first, so that nobody finds half a build while it is being removed.
        doomed = self._built / f".doomed-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        with contextlib.suppress(FileNotFoundError):
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _sweep(self) -> None:
        for left in self._built.glob(".*-*-*"):
            pid = left.name.split("-")[1]
            if not (pid.isdigit() and Path("/proc", pid).exists()):
                shutil.rmtree(left, ignore_errors=True)


def renew_hint(name: str) -> str:
    """What to do about a build that is of another version."""
    return f"Build it anew: interpreter template build {name}"


def rebuild_hint(name: str) -> str:
    """What to do about a build that is damaged."""
    return f"Build it again: interpreter template build {name} --force"


@contextmanager
def disk_errors(folder: Path) -> Generator[None]:
    """Turn errors of the disk under ``folder`` into ours. Raises DiskFull, HostError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room is left under {folder}", hint="Free some, or move INTERPRETER_HOME") from error
        raise HostError(f"{folder} cannot be used: {error.strerror}", hint="Set INTERPRETER_HOME") from error


def _not_built(name: str) -> TemplateNotFound:
    return TemplateNotFound(f"template {name!r} is not built", hint=f"Build it: interpreter template build {name}")


def _close_to_others(folder: Path) -> None:
    # Nobody else could enter the folder so far; programs that made files in it chose their modes.
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _sync_folder(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
