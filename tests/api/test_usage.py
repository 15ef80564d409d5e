"""Accounting, against the host's own numbers: a busy loop, a sleep, memory; sums, costs, CSV."""

import csv
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from served import Api

from interpreter.clock import SystemClock

pytestmark = pytest.mark.machine

MB = 1_000_000


async def usage(api: Api, session_id: str) -> dict[str, Any]:
    await api.service.sessions.ledger.sample()
    return (await api.client.get(f"/v1/sessions/{session_id}/usage")).json()


async def next_second(api: Api, session_id: str) -> dict[str, Any]:
    """What was used, when one more second has been counted."""
    await SystemClock().sleep(1.0)
    return await usage(api, session_id)


def processor_seconds(pid: int) -> float:
    """What the host's kernel counts for the threads that run the guest."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU "):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


async def test_a_busy_loop_costs_what_the_hosts_kernel_says(api: Api, session_id: str) -> None:
    live = api.service.sessions.live_session(session_id)
    assert live is not None
    first = await next_second(api, session_id)
    began = processor_seconds(live.session.machine_pid)
    code = "import time\nend = time.process_time() + 2\nwhile time.process_time() < end: pass"
    assert (await api.run(session_id, code))["status"] == "ok"
    last = await next_second(api, session_id)
    used = processor_seconds(live.session.machine_pid) - began
    counted = last["cpu_seconds"] - first["cpu_seconds"]
    assert counted == pytest.approx(used, rel=0.1, abs=0.1)
    # An emulated guest's own time goes on while its host's processor does other things.
    assert counted > 0.5


async def test_sleeping_costs_next_to_nothing(api: Api, session_id: str) -> None:
    await api.run(session_id, "import time")
    first = await next_second(api, session_id)
    await api.run(session_id, "time.sleep(3)")
    last = await next_second(api, session_id)
    assert last["seconds"] - first["seconds"] >= 3
    # Running the cell itself takes an emulated guest a quarter of a second.
    assert last["cpu_seconds"] - first["cpu_seconds"] < 1.0


async def test_memory_is_what_the_session_holds(api: Api, session_id: str) -> None:
    first = await next_second(api, session_id)
    await api.run(session_id, "data = bytearray(b'x') * 200_000_000")
    last = await next_second(api, session_id)
    assert last["memory_peak_bytes"] - first["memory_peak_bytes"] > 190 * MB
    assert last["series"][-1]["memory_bytes"] > 200 * MB


async def test_every_second_is_counted_once(api: Api, session_id: str) -> None:
    series = (await next_second(api, session_id))["series"]
    for before, after in pairwise(series):
        assert after["second"] - after["seconds"] == before["second"]


async def test_what_is_over_is_kept_per_minute_with_the_same_sums(api: Api) -> None:
    session_id = await api.new()
    await api.run(session_id, "sum(range(10**6))")
    clock = SystemClock()
    began = clock.now()
    before = await next_second(api, session_id)
    await api.client.delete(f"/v1/sessions/{session_id}")
    after = (await api.client.get(f"/v1/sessions/{session_id}/usage")).json()
    assert len(after["series"]) <= 2
    assert after["series"][0]["second"] % 60 == 0
    assert 0 <= after["seconds"] - before["seconds"] <= clock.now() - began
    assert after["cpu_seconds"] == pytest.approx(before["cpu_seconds"], abs=0.5)
    assert after["memory_peak_bytes"] >= before["memory_peak_bytes"]


async def test_a_session_is_billed_for_a_second_and_128_mb_at_least(api: Api) -> None:
    session_id = await api.new()
    await api.client.delete(f"/v1/sessions/{session_id}")
    used = (await api.client.get(f"/v1/sessions/{session_id}/usage")).json()
    assert used["seconds"] >= 1
    rates = api.service.settings
    billed = used["seconds"] * 128 * 1024 * 1024 / 1e9
    least = billed * rates.gb_hour_rate / 3600 + used["cpu_seconds"] * rates.cpu_hour_rate / 3600
    assert used["cost"] == pytest.approx(least, rel=1e-3)


@pytest.mark.parametrize("group_by", ["tenant", "template", "day"])
async def test_sums_are_of_all_sessions(api: Api, session_id: str, group_by: str) -> None:
    await next_second(api, session_id)
    groups = (await api.client.get("/v1/usage", params={"group_by": group_by})).json()["groups"]
    assert sum(group["sessions"] for group in groups) >= 1
    assert sum(group["seconds"] for group in groups) >= 1
    text = (await api.client.get("/v1/usage", params={"group_by": group_by, "format": "csv"})).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["group"] for row in rows] == [group["group"] for group in groups]


async def test_a_series_comes_as_csv(api: Api, session_id: str) -> None:
    await next_second(api, session_id)
    answer = await api.client.get(f"/v1/sessions/{session_id}/usage", params={"format": "csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert set(rows[0]) == {"second", "seconds", "cpu_seconds", "memory_bytes"}


async def test_a_time_without_use_has_no_groups(api: Api) -> None:
    answer = await api.client.get("/v1/usage", params={"from": "2001-01-01T00:00:00Z", "to": "2001-01-02T00:00:00Z"})
    assert answer.json() == {"groups": []}
