"""The guard: looks every second at what the sessions take of the host, and ends one before all of them suffer."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from interpreter.sessions.disks import Disks
from interpreter.sessions.live import LiveSession
from interpreter.sessions.resources import MIB, Resource
from interpreter.store.records import Reason

GUARD_SECONDS: Final = 1.0


class Guard:
    """One look at a time. ``end`` ends a session, with the reason and a message for its user."""

    def __init__(
        self,
        resources: Sequence[Resource],
        disks: Disks,
        disk_limit: int,
        end: Callable[[LiveSession, Reason, str], Awaitable[None]],
    ) -> None:
        self._resources = resources
        self._disks = disks
        self._disk_limit = disk_limit
        self._end = end

    async def look(self, sessions: Sequence[LiveSession]) -> None:
        """End the sessions whose disk is past its limit, and the largest holder of each resource that runs out."""
        await self._disks.look({live.record.id: live.held.place for live in sessions})
        left = list(sessions)
        for live in sessions:
            took = self._disks.held(live.record.id)
            if 0 < self._disk_limit < took:
                left.remove(live)
                message = (
                    f"its disk took {took // MIB} MiB of the host's, of {self._disk_limit // MIB} that it may take"
                )
                await self._end(live, Reason.OUT_OF_DISK, message)
        for resource in self._resources:
            if left and resource.is_running_out:
                largest = max(left, key=lambda live: resource.held(live.record.id))
                left.remove(largest)
                message = f"the host ran out of {resource.name}, and this session held the most"
                await self._end(largest, resource.reason, message)
