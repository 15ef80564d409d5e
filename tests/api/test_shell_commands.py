"""Shell commands over REST: output and status, streams, time limits, the background, and clients that go away."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from served import SECONDS, Api

pytestmark = pytest.mark.machine

EVENTS = {"Accept": "text/event-stream"}


async def run(api: Api, session_id: str, command: str, **more: Any) -> dict[str, Any]:
    answer = await api.client.post(f"/v1/sessions/{session_id}/commands", json={"command": command, **more})
    assert answer.status_code in {200, 202}, answer.text
    return answer.json()


async def test_a_command_tells_what_it_printed_and_how_it_ended(api: Api, shared: str) -> None:
    result = await run(api, shared, "echo out; echo err >&2; pwd; exit 3")
    assert (result["status"], result["exit_code"]) == ("error", 3)
    assert (result["stdout"], result["stderr"]) == ("out\n/home/user\n", "err\n")


async def test_a_command_has_the_sessions_environment_and_its_own(api: Api) -> None:
    session_id = await api.new(env={"A": "one"})
    result = await run(api, session_id, "echo $A $B $USER; id -u; cd", env={"B": "two"}, cwd="/tmp")
    assert result["stdout"] == "one two user\n1000\n"
    await api.client.delete(f"/v1/sessions/{session_id}")


async def test_output_comes_as_events(api: Api, shared: str) -> None:
    body = {"command": "printf 'gr\\xc3'; sleep 0.2; printf '\\xbcn'; false"}
    url = f"/v1/sessions/{shared}/commands"
    async with api.client.stream("POST", url, json=body, headers=EVENTS) as response:
        lines = [line async for line in response.aiter_lines()]
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert events[0]["type"] == "started"
    assert "".join(event.get("text", "") for event in events) == "grün"
    assert (events[-1]["status"], events[-1]["exit_code"]) == ("error", 1)


async def test_a_command_past_its_time_is_ended(api: Api, shared: str) -> None:
    result = await run(api, shared, "trap '' TERM; echo begun; while :; do sleep 1; done", timeout=5)
    assert (result["status"], result["stdout"]) == ("timeout", "begun\n")


async def test_a_command_that_floods_stdout_still_says_why_it_failed(api: Api, shared: str) -> None:
    result = await run(api, shared, "yes äöü | head -c 14000000; echo 'no such thing' >&2; exit 3")
    assert (result["exit_code"], result["truncated"], result["stderr"]) == (3, True, "no such thing\n")
    # Between two characters, wherever the limit is.
    assert set(result["stdout"]) == set("äöü\n")


@pytest.mark.parametrize("cwd", ["missing", "/root"])
async def test_a_command_that_cannot_be_started_says_why(api: Api, shared: str, cwd: str) -> None:
    result = await run(api, shared, "true", cwd=cwd)
    assert (result["status"], result["error"]["code"]) == ("failed", "command_not_started")


async def test_a_command_in_the_background_can_be_followed_and_ended(api: Api, shared: str) -> None:
    started = await run(api, shared, "echo here; exec sleep 1000", background=True)
    url = f"/v1/sessions/{shared}/commands/{started['command_id']}"
    async with asyncio.timeout(SECONDS), api.client.stream("GET", f"{url}/events") as response:
        async for line in response.aiter_lines():
            if "here" in line:
                break
    assert (await api.client.get(url)).json()["state"] == "running"
    assert (await api.client.delete(url)).status_code == 204
    ended = (await api.client.get(url)).json()
    assert (ended["state"], ended["result"]["status"], ended["result"]["stdout"]) == ("done", "cancelled", "here\n")
    assert started["command_id"] in {
        one["command_id"] for one in (await api.client.get(f"/v1/sessions/{shared}/commands")).json()["commands"]
    }


async def test_output_past_the_limit_is_cut(api: Api, session_id: str) -> None:
    result = await run(api, session_id, "yes | head -c 12000000")
    assert (result["status"], result["truncated"]) == ("ok", True)
    assert len(result["stdout"]) <= 10_000_000


async def test_a_client_that_goes_away_ends_its_command(api: Api, session_id: str) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient(base_url=api.client.base_url, timeout=SECONDS) as client:
            await client.post(f"/v1/sessions/{session_id}/commands", json={"command": "touch begun; exec sleep 12345"})

    leaving = asyncio.create_task(leave())
    url = f"/v1/sessions/{session_id}/files/entry"
    async with asyncio.timeout(SECONDS):
        while (await api.client.get(url, params={"path": "begun"})).status_code != 200:
            continue
    leaving.cancel()
    # The pattern does not find the command that looks for it.
    look = "grep -ls '1234[5]' /proc/[0-9]*/cmdline | wc -l"
    async with asyncio.timeout(SECONDS):
        while (await run(api, session_id, look))["stdout"] != "0\n":
            continue


async def test_what_a_command_prints_is_read_while_it_runs(api: Api, shared: str) -> None:
    url = f"/v1/sessions/{shared}/commands"
    body = {"command": "echo one; read -r line < <(sleep 1; echo two); echo $line >&2; exit 3", "background": True}
    command_id = (await api.client.post(url, json=body)).json()["command_id"]
    seen: list[dict[str, Any]] = [{"next": 0, "state": "running"}]
    while seen[-1]["state"] == "running":
        answer = await api.client.get(f"{url}/{command_id}/output", params={"after": seen[-1]["next"], "wait": 30})
        assert answer.status_code == 200, answer.text
        seen.append(answer.json())
    assert [seen[1]["stdout"], seen[1]["stderr"], seen[1]["state"], seen[1]["exit_code"]] == [
        "one\n",
        "",
        "running",
        None,
    ]
    rest = seen[2:]
    assert ["".join(one[name] for one in rest) for name in ("stdout", "stderr")] == ["", "two\n"]
    assert seen[-1]["exit_code"] == 3
    whole = (await api.client.get(f"{url}/{command_id}/output")).json()
    assert (whole["stdout"], whole["stderr"]) == ("one\n", "two\n")
    past = (await api.client.get(f"{url}/{command_id}/output", params={"after": 1000})).json()
    assert (past["stdout"], past["next"]) == ("", 1000)
    assert (await api.client.get(f"{url}/nothing/output")).status_code == 404
