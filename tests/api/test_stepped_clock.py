"""The time of day may be set at any moment: how long something took, and how much is left, is what has passed."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from manual_clock import ManualClock
from served import own_home, serve

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

EVENTS = {"Accept": "text/event-stream"}
WAITING = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)\nos.remove('go')"
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [{"cell_type": "code", "metadata": {}, "outputs": [], "source": WAITING}],
}


@pytest.mark.parametrize("step", [-3600.0, 3600.0], ids=["back", "forward"])
async def test_a_step_of_the_time_of_day_is_no_part_of_what_passed(
    engine: Engine, settings: Settings, tmp_path: Path, step: float
) -> None:
    clock = ManualClock()
    home = own_home(settings, tmp_path / "home")
    async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256), clock) as api:
        session_id = await api.new(timeout_seconds=1000)
        files = f"/v1/sessions/{session_id}/files/content"

        async def done(path: str, started: str, **wanted: Any) -> dict[str, Any]:
            name, data = "", "{}"
            async with api.client.stream("POST", path, json=wanted, headers=EVENTS) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        data = line.removeprefix("data: ")
                    if line.startswith("event: ") and name == started:
                        clock.advance(5)
                        clock.set_wall(step)
                        put = await api.client.put(files, params={"path": "go"}, content=b"1")
                        assert put.is_success, put.text
            assert name == "done"
            return json.loads(data)

        command = "while [ ! -e go ]; do sleep 0.05; done; rm go"
        told = [
            await done(f"/v1/sessions/{session_id}/execute", "started", code=WAITING),
            await done(f"/v1/sessions/{session_id}/commands", "started", command=command),
            await done("/v1/notebooks/execute", "cell_started", notebook=NOTEBOOK, session_id=session_id),
        ]
        assert [(one["status"], one["duration_seconds"]) for one in told] == [("ok", 5)] * 3
        assert told[2]["notebook"]["cells"][0]["metadata"]["papermill"]["duration"] == 5
        seen = (await api.client.get(f"/v1/sessions/{session_id}")).json()
        left = datetime.fromisoformat(seen["expires_at"]).timestamp() - clock.now()
        # Three times five seconds have passed since its start.
        assert left == 1000 - 15
        assert seen["state"] == "running"
