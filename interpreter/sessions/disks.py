"""The scratch disks of the sessions: what they take of the host's disk, and what that has left."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from interpreter.engine.places import Place
from interpreter.engine.scratch import SCRATCH
from interpreter.errors import HostError

_BLOCK: Final = 512
"""The unit of st_blocks (inode(7)), whatever the file system's own."""


class Disks:
    """Looks at disks when it is told to, and remembers what it saw."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._held: dict[str, int] = {}

    def available(self) -> int:
        """Bytes that the file system of the state folder has left for the service's user. Raises HostError."""
        try:
            state = os.statvfs(self._home)
        except OSError as error:
            raise HostError(f"{self._home} cannot be looked at: {error.strerror}") from None
        return state.f_bavail * state.f_frsize

    def held(self, session_id: str) -> int:
        """Bytes that a session's disk took when it was last looked at: its blocks, not its size."""
        return self._held.get(session_id, 0)

    async def look(self, places: Mapping[str, Place]) -> None:
        """Look at the disks of all sessions; ``places`` by their ids."""
        self._held = await asyncio.to_thread(lambda: {key: _blocks(place) for key, place in places.items()})


def _blocks(place: Place) -> int:
    try:
        return (place.folder / SCRATCH).stat().st_blocks * _BLOCK
    except OSError:
        # Its session has just ended.
        return 0
