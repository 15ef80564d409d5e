"""The folders of the service's machines, by which they are found again after the service was killed."""

import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.errors import HostError
from interpreter.private import private_folder

_PREFIX: Final = "interpreter-"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a machine that is to outlive the service can be found again: its name, and its folder.

    In the folder lie the machine's record, its sockets and its scratch disk.
    """

    name: str
    folder: Path


class Places:
    """All places under one folder. A place's name is that of its folder with a prefix, and QEMU's own name.

    The name is for people who look at the process list; a machine is found by what its folder says of it.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    @contextmanager
    def new(self) -> Generator[Place]:
        """A new place, removed when the block is left. Raises HostError."""
        key = uuid.uuid4().hex
        place = Place(_PREFIX + key, self._home / key)
        try:
            # Whoever can enter it can take the machine over.
            private_folder(self._home)
            place.folder.mkdir(mode=0o700)
        except OSError as error:
            raise HostError(f"{place.folder} cannot be made: {error.strerror}") from None
        try:
            yield place
        finally:
            self.remove(place)

    def all(self) -> list[Place]:
        """Every place that is there: of machines that run, or that an earlier service has left behind."""
        if not self._home.is_dir():
            return []
        return [Place(_PREFIX + folder.name, folder) for folder in self._home.iterdir() if folder.is_dir()]

    def remove(self, place: Place) -> None:
        """Remove a place whose machine is gone."""
        shutil.rmtree(place.folder, ignore_errors=True)
