"""Every await of a session's start and end, against errors that the system can give.

Whichever it is: no machine is left, the place is given back, the record says what happened or the session is well, a
neighbour still answers, and the service still starts sessions.
"""

import asyncio
import errno
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from faults import ERRORS, Fault
from served import SECONDS, Api, own_home, serve
from test_takeover import qemu_pids

from interpreter import Engine, Settings
from interpreter.store.records import NewSession


@pytest.fixture(scope="module")
async def home(engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_home(settings, tmp_path_factory.mktemp("faults") / "home")


@pytest.fixture(scope="module")
async def own(home: Path) -> AsyncGenerator[Api]:
    async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256)) as api:
        yield api


@pytest.fixture(scope="module")
async def neighbour(own: Api) -> str:
    session_id = await own.new(name="neighbour")
    await own.run(session_id, "x = 42")
    return session_id


def tickets(api: Api) -> int:
    return api.service.sessions.admission._tenants.total()


async def machines_are(home: Path, number: int) -> None:
    async with asyncio.timeout(SECONDS):
        while len(qemu_pids(home)) != number:
            await turn()


async def turn() -> None:
    await asyncio.sleep(0.01)


async def all_is_well(api: Api, home: Path, neighbour: str) -> None:
    assert await api.printed(neighbour, "print(x)") == "42\n"
    await machines_are(home, 1)
    assert tickets(api) == 1
    assert [live.record.id for live in api.service.sessions.live] == [neighbour]
    assert api.service.supervisor.down == {}
    records, _ = (await api.client.get("/v1/sessions", params={"limit": 500})).json().values()
    assert {one["state"] for one in records} <= {"running", "stopped", "failed"}
    assert [one["id"] for one in records if one["state"] == "running"] == [neighbour]


@pytest.mark.parametrize(
    "boundary", ["thread", "read", "write", "folder", "process", "pair", "pipe", "connect", "qemu", "agent", "context"]
)
async def test_a_start_that_fails_anywhere_leaves_nothing_but_its_cause(
    own: Api, home: Path, neighbour: str, boundary: str
) -> None:
    nth = 0
    while True:
        nth += 1
        fault = Fault("start", boundary, nth, ERRORS[nth % len(ERRORS)])
        with pytest.MonkeyPatch.context() as patch:
            fault.arm(patch.setattr)
            answer = await own.client.post("/v1/sessions", json={})
        if answer.status_code == 201:
            # Past its last call it starts; or the one that failed could be done without.
            await own.client.delete(f"/v1/sessions/{answer.json()['id']}")
            await all_is_well(own, home, neighbour)
            if not fault.fired:
                break
            continue
        error = answer.json()["error"]
        assert fault.fired, error
        # One that people can use, not that of an unexpected error.
        assert error["code"] != "internal"
        assert error["message"]
        await all_is_well(own, home, neighbour)
    newest = (await own.client.get("/v1/sessions", params={"state": "failed", "limit": 500})).json()["sessions"]
    assert all(one["message"] for one in newest)


@pytest.mark.parametrize("boundary", ["thread", "write", "qemu", "agent"])
async def test_an_end_that_fails_anywhere_is_an_end(own: Api, home: Path, neighbour: str, boundary: str) -> None:
    nth = 0
    while True:
        nth += 1
        session_id = await own.new()
        fault = Fault("end", boundary, nth, ERRORS[nth % len(ERRORS)])
        with pytest.MonkeyPatch.context() as patch:
            fault.arm(patch.setattr)
            answer = await own.client.delete(f"/v1/sessions/{session_id}")
        assert (answer.status_code, answer.json()["state"], answer.json()["reason"]) == (200, "stopped", "user")
        await all_is_well(own, home, neighbour)
        await own.service.sessions._unwritten.flush()
        record = await own.service.store.find(session_id)
        assert record is not None
        assert (record.state, record.reason) == ("stopped", "user")
        if not fault.fired:
            break


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
async def test_with_a_database_that_takes_nothing_an_end_is_written_when_it_does_again(
    own: Api, home: Path, neighbour: str, number: int
) -> None:
    session_id = await own.new()

    async def full(*_: object) -> None:
        raise OSError(number, "injected")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own.service.store.database, "run", full)
        answer = await own.client.delete(f"/v1/sessions/{session_id}")
        assert answer.json()["state"] == "stopped"
        # Of a create that nobody waits for any more nothing is left either.
        given_up = asyncio.create_task(own.service.sessions.create("default", NewSession()))
        await turn()
        given_up.cancel()
        await asyncio.wait({given_up})
        await machines_are(home, 1)
        assert (await own.client.get(f"/v1/sessions/{session_id}")).json()["state"] == "stopped"
    await own.service.sessions._unwritten.flush()
    record = await own.service.store.find(session_id)
    assert record is not None
    assert record.state == "stopped"


async def test_a_start_that_is_given_up_at_any_moment_leaves_nothing(own: Api, home: Path, neighbour: str) -> None:
    for boundary in ("thread", "write", "qemu", "agent"):
        nth = 0
        while True:
            nth += 1
            fault = Fault("start", boundary, nth, errno.EIO)
            reached = asyncio.Event()

            def reach(fault: Fault = fault, reached: asyncio.Event = reached) -> None:
                fault.left -= 1
                if fault.left == 0:
                    fault.fired = True
                    reached.set()

            fault._count = reach  # type: ignore[method-assign]
            with pytest.MonkeyPatch.context() as patch:
                fault.arm(patch.setattr)
                creating = asyncio.create_task(own.service.sessions.create("default", NewSession()))
                await asyncio.wait(
                    {creating, waiting := asyncio.create_task(reached.wait())}, return_when="FIRST_COMPLETED"
                )
                waiting.cancel()
                if not fault.fired:
                    await own.service.sessions.stop("default", (await creating).id)
                    break
                creating.cancel()
                await asyncio.wait({creating})
                async with asyncio.timeout(SECONDS):
                    while tickets(own) != 1:
                        await turn()
        await machines_are(home, 1)
    await all_is_well(own, home, neighbour)
