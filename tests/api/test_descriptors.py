"""File descriptors of the service: what a session takes, idle and with what happens in it, is what is reckoned with."""

import asyncio
from pathlib import Path

import pytest
from served import Api, own_home, serve

from interpreter import Engine, Settings
from interpreter.api.http.descriptors import IDLE_SESSION

pytestmark = pytest.mark.machine

MOST_OF_DEVICE = 24
"""What its device's own process may have, by itself, with a few streams."""


def held_by(process: int | str = "self") -> int:
    return len(list(Path("/proc", str(process), "fd").iterdir()))


async def idle(api: Api) -> str:
    """A session in which something has happened, and nothing does."""
    session_id = await api.new()
    assert await api.printed(session_id, "print(1)") == "1\n"
    return session_id


async def test_each_session_and_each_thing_in_it_takes_what_is_reckoned_with(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256)) as api:
        # The first one's template is loaded with it.
        sessions = [await idle(api)]
        one = held_by()
        sessions += [await idle(api) for _ in range(3)]
        assert held_by() - one == 3 * IDLE_SESSION
        path = f"/v1/sessions/{sessions[0]}"
        for number in range(3):
            made = await api.client.post(f"{path}/contexts", json={"context_id": f"context{number}"})
            assert made.status_code == 201, made.text
            made = await api.client.post(f"{path}/commands", json={"command": "sleep 1000", "background": True})
            assert made.status_code == 202, made.text
        live = [api.service.sessions.live_session(session_id) for session_id in sessions]
        async with asyncio.timeout(60):
            for command in live[0].commands.all() if live[0] else []:
                async for _, event in command.journal.follow():
                    if event.type == "started":
                        break
        assert held_by() - one == 3 * IDLE_SESSION + 6
        for session in filter(None, live):
            assert held_by(session.session.device_pid) <= MOST_OF_DEVICE
        for session_id in sessions[1:]:
            assert (await api.client.delete(f"{path.rpartition('/')[0]}/{session_id}")).is_success
        assert held_by() - one == 6
