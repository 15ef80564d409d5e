"""The guard ends one session at a time: the one whose disk is past its limit, or the largest of what runs out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from interpreter.engine.places import Place
from interpreter.engine.scratch import SCRATCH
from interpreter.errors import HostError
from interpreter.sessions.disks import Disks
from interpreter.sessions.guard import Guard
from interpreter.sessions.live import LiveSession
from interpreter.sessions.resources import MIB, Resource
from interpreter.store.records import Reason


@dataclass(frozen=True)
class Record:
    id: str


@dataclass(frozen=True)
class Held:
    place: Place


@dataclass(frozen=True)
class Session:
    """What of a session the guard looks at."""

    record: Record
    held: Held


@dataclass
class Host:
    """Sessions with disks of so many MiB, and who was ended, why."""

    folder: Path
    sessions: list[Session] = field(default_factory=list[Session])
    ended: list[tuple[str, Reason, str]] = field(default_factory=list[tuple[str, Reason, str]])

    def add(self, name: str, mib: int) -> None:
        place = Place(name, self.folder / name)
        place.folder.mkdir()
        # As a scratch disk is: long, and mostly holes.
        with (place.folder / SCRATCH).open("wb") as file:
            file.write(b"x" * mib * MIB)
            file.truncate(100 * MIB)
        self.sessions.append(Session(Record(name), Held(place)))

    async def look(self, *resources: Resource, disks: Disks | None = None, limit: int = 0) -> list[tuple[str, Reason]]:
        async def end(live: LiveSession, reason: Reason, message: str) -> None:
            self.ended.append((live.record.id, reason, message))

        guard = Guard(resources, disks or Disks(self.folder), limit * MIB, end)
        await guard.look(cast("list[Any]", self.sessions))
        return [(name, reason) for name, reason, _ in self.ended]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path)
    host.add("small", 1)
    host.add("large", 5)
    return host


def resource(name: str, available: int, held: dict[str, int], reason: Reason) -> Resource:
    return Resource(name, lambda: available, lambda key: held.get(key, 0), each=0, reserve=100, reason=reason)


async def test_a_disk_is_counted_in_what_it_takes_and_ended_past_its_limit(host: Host) -> None:
    assert await host.look(limit=6) == []
    assert await host.look(limit=4) == [("large", Reason.OUT_OF_DISK)]
    assert "5 MiB of the host's, of 4 that it may take" in host.ended[0][2]


async def test_who_holds_the_most_of_what_runs_out_is_ended_and_only_then(host: Host) -> None:
    held = {"small": 70, "large": 20}
    assert await host.look(resource("memory", 50, held, Reason.OUT_OF_MEMORY)) == []
    assert await host.look(resource("memory", 49, held, Reason.OUT_OF_MEMORY)) == [("small", Reason.OUT_OF_MEMORY)]
    assert "ran out of memory" in host.ended[0][2]


async def test_disks_are_looked_at_before_the_largest_is_chosen(host: Host) -> None:
    disks = Disks(host.folder)
    full = Resource("disk", lambda: 0, disks.held, each=0, reserve=100, reason=Reason.OUT_OF_DISK)
    assert await host.look(full, disks=disks) == [("large", Reason.OUT_OF_DISK)]


async def test_each_resource_ends_a_session_of_its_own_and_none_that_is_left_out(host: Host) -> None:
    both = [
        resource("memory", 0, {"large": 9}, Reason.OUT_OF_MEMORY),
        resource("disk", 0, {"large": 9}, Reason.OUT_OF_DISK),
    ]
    assert await host.look(*both, limit=4) == [("large", Reason.OUT_OF_DISK), ("small", Reason.OUT_OF_MEMORY)]


async def test_the_free_disk_is_that_of_the_state_folder(tmp_path: Path) -> None:
    assert Disks(tmp_path).available() > 0
    with pytest.raises(HostError, match="cannot be looked at"):
        Disks(tmp_path / "nowhere").available()
