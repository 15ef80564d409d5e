"""Every await of taking a session back, against errors that the system can give: none costs a session.

The service under test runs in a process of its own, with one fault armed; it is killed, and the next one has the next.
"""

import asyncio
import errno
import signal
from pathlib import Path

import pytest
from faults import ERRORS
from served import SECONDS, own_home
from test_takeover import new, qemu_pids, run, serving

from interpreter import Engine, Settings

ARMED = "import faults; faults.arm_from_environment(); from interpreter.cli import main; main()"

POINTS = [
    *(("read", 1), ("pidfd", 1), ("connect", 1), ("connect", 2), ("pair", 1), ("agent", 1), ("context", 1)),
    *(("qemu", 1), ("qemu", 2), ("qemu", 3), ("qemu", 4)),
]
"""Boundaries of `faults`, and which of the calls to them fails."""


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service in a process of its own finds `faults`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


async def test_while_a_session_is_taken_back_lists_show_it_and_calls_are_asked_to_come_again(
    engine: Engine, settings: Settings, tmp_path: Path, armed: None
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home) as (process, client):
        kept, ended = await new(client), await new(client)
        await run(client, kept, "x = 42")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    # The first try of each fails, so that they are not back for a second at least.
    fault = f"take back;read;1;{errno.EMFILE}"
    async with serving(home, program=ARMED, FAULT=fault, INTERPRETER_QUEUE_SECONDS="0") as (process, client):
        refused = await client.post(f"/v1/sessions/{kept}/execute", json={"code": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert int(refused.headers["retry-after"]) >= 1
        listed = (await client.get("/v1/sessions", params={"state": "running"})).json()["sessions"]
        assert {one["id"] for one in listed} == {kept, ended}
        kernels = (await client.get("/api/kernels")).json()
        assert {one["id"].replace("-", "") for one in kernels} == {kept, ended}
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["taking_back"]) == (200, 2)
        # What is not back can be ended all the same.
        stopped = (await client.delete(f"/v1/sessions/{ended}")).json()
        assert (stopped["state"], stopped["reason"]) == ("stopped", "user")
        async with asyncio.timeout(SECONDS):
            while (await client.get("/readyz")).json()["taking_back"]:
                continue
        assert (await run(client, kept, "x"))["outputs"][0]["data"]["text/plain"] == "42"
        assert len(qemu_pids(home)) == 1
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_taking_back_fails_anywhere_and_costs_no_session(
    engine: Engine, settings: Settings, tmp_path: Path, armed: None
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serving(home) as (process, client):
        sessions = [await new(client) for _ in range(2)]
        for number, session_id in enumerate(sessions):
            await client.post(f"/v1/sessions/{session_id}/contexts", json={"context_id": "two"})
            await run(client, session_id, f"x = {number}")
        process.send_signal(signal.SIGKILL)
        await process.wait()
    for place, (boundary, nth) in enumerate(POINTS):
        number = ERRORS[place % len(ERRORS)]
        fault = f"take back;{boundary};{nth};{number}"
        async with serving(home, program=ARMED, FAULT=fault) as (process, client):
            for expected, session_id in enumerate(sessions):
                # Where it must, the service asks to come again.
                async with asyncio.timeout(SECONDS):
                    while (answer := await client.get(f"/v1/sessions/{session_id}/contexts")).status_code == 503:
                        assert answer.json()["error"]["code"] == "not_ready"
                        assert int(answer.headers["retry-after"]) >= 1
                result = await run(client, session_id, "x")
                assert result["status"] == "ok", (fault, result)
                assert result["outputs"][0]["data"]["text/plain"] == str(expected), fault
            assert len(qemu_pids(home)) == 2, fault
            process.send_signal(signal.SIGKILL)
            await process.wait()
    async with serving(home) as (process, client):
        third = await new(client)
        assert (await run(client, third, "1"))["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    assert qemu_pids(home) == {}
