"""Folders and files that only their owner can read, from the moment they are there, whatever the umask."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

import structlog

from interpreter.errors import ConfigurationError, HostError

log = structlog.get_logger(__name__)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OURS = frozenset({"templates", "machines", "scratch", "accelerator.json", "service.lock", "service.sqlite"})


def private_home(home: Path) -> None:
    """Make the state folder, or close one that is there to all others.

    Raises ConfigurationError for a folder that is not ours to close, HostError.
    """
    try:
        private_folder(home)
        mode = home.stat().st_mode
        if not mode & _OTHERS:
            return
        held = {path.name for path in home.iterdir()}
        if mode & stat.S_ISVTX or (held and not held & _OURS):
            raise ConfigurationError(
                f"{home} is open to other users and holds what is not the service's",
                hint="Give INTERPRETER_HOME a folder of its own, or close it: chmod 700",
            )
        home.chmod(0o700)
    except OSError as error:
        raise HostError(f"{home} cannot be used: {error.strerror}", hint="Set INTERPRETER_HOME") from None
    log.warning("the state folder was open to other users, and is closed now", folder=str(home))


def private_folder(folder: Path) -> None:
    """Make a folder, and those on the way to it, unless they are there."""
    for one in (*reversed(folder.parents), folder):
        if not one.exists():
            one.mkdir(mode=0o700, exist_ok=True)


def new_private(path: Path) -> BinaryIO:
    """A new file, open for writing. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def write_private(path: Path, text: str) -> None:
    """Write a file, whole or not at all, in place of one that is there."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with new_private(part) as file:
        file.write(text.encode())
    part.replace(path)
