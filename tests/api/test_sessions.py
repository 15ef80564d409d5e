"""Sessions over REST: started, found, listed in pages, extended, stopped; every wrong wish is refused with a reason."""

import asyncio

import pytest
from served import Api

pytestmark = pytest.mark.machine


async def test_a_session_runs_when_it_is_answered(api: Api, session_id: str) -> None:
    seen = (await api.client.get(f"/v1/sessions/{session_id}")).json()
    assert (seen["state"], seen["timeout_seconds"], seen["timeout_mode"]) == ("running", 900, "total")
    assert await api.printed(session_id, "print(6 * 7)") == "42\n"


async def test_a_stopped_session_says_why_and_refuses_code(api: Api) -> None:
    session_id = await api.new(name="short")
    stopped = (await api.client.delete(f"/v1/sessions/{session_id}")).json()
    assert (stopped["state"], stopped["reason"], stopped["expires_at"]) == ("stopped", "user", None)
    again = await api.client.delete(f"/v1/sessions/{session_id}")
    assert again.json()["stopped_at"] == stopped["stopped_at"]
    refused = await api.client.post(f"/v1/sessions/{session_id}/execute", json={"code": "1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")


async def test_stopping_from_many_sides_at_once_ends_it_once(api: Api) -> None:
    session_id = await api.new()
    answers = await asyncio.gather(*(api.client.delete(f"/v1/sessions/{session_id}") for _ in range(10)))
    assert {answer.json()["stopped_at"] for answer in answers} == {answers[0].json()["stopped_at"]}
    assert {answer.json()["state"] for answer in answers} == {"stopped"}


async def test_environment_name_and_metadata_are_kept(api: Api) -> None:
    session_id = await api.new(env={"REGION": "grün"}, name="n", metadata={"a": [1]})
    assert await api.printed(session_id, "import os\nprint(os.environ['REGION'])") == "grün\n"
    seen = (await api.client.get(f"/v1/sessions/{session_id}")).json()
    assert (seen["env"], seen["name"], seen["metadata"]) == (["REGION"], "n", {"a": [1]})
    await api.client.delete(f"/v1/sessions/{session_id}")


async def test_a_list_comes_in_pages_newest_first(api: Api) -> None:
    made = [await api.new(name=f"page-{number}") for number in range(3)]
    seen: list[str] = []
    after = None
    while True:
        page = (await api.client.get("/v1/sessions", params={"limit": 2, **({"after": after} if after else {})})).json()
        seen += [session["id"] for session in page["sessions"]]
        if (after := page["next"]) is None:
            break
    assert [one for one in seen if one in made] == made[::-1]
    assert len(seen) == len(set(seen))
    await asyncio.gather(*(api.client.delete(f"/v1/sessions/{one}") for one in made))
    stopped = (await api.client.get("/v1/sessions", params={"state": "stopped", "limit": 500})).json()["sessions"]
    assert set(made) <= {session["id"] for session in stopped}
    assert {session["state"] for session in stopped} == {"stopped"}


async def test_a_timeout_can_be_extended(api: Api, session_id: str) -> None:
    before = (await api.client.get(f"/v1/sessions/{session_id}")).json()
    after = await api.client.post(f"/v1/sessions/{session_id}/timeout", json={"timeout_seconds": 28_800})
    assert after.json()["timeout_seconds"] == 28_800
    assert after.json()["expires_at"] > before["expires_at"]


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"timeout_seconds": 0}, "timeout_seconds"),
        ({"timeout_seconds": 28_801}, "timeout_seconds"),
        ({"timeout_seconds": "soon"}, "timeout_seconds"),
        ({"timeout_mode": "never"}, "timeout_mode"),
        ({"network_mode": "LAN"}, "network_mode"),
        ({"env": {"A=B": "x"}}, "A=B"),
        ({"env": {"A": "x\0"}}, "NUL"),
        ({"cpus": 8}, "cpus"),
        ({"memory_mb": 1}, "memory_mb"),
        ({"sizes": 1}, "sizes"),
        ({"metadata": {"x": "y" * 20_000}}, "metadata"),
    ],
)
async def test_a_wish_that_cannot_be_met_is_named(api: Api, wanted: dict[str, object], named: str) -> None:
    answer = await api.client.post("/v1/sessions", json=wanted)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_request"
    assert named in answer.json()["error"]["message"]


async def test_what_is_not_there_is_404(api: Api) -> None:
    for path in ("/v1/sessions/nothing", "/v1/sessions/nothing/usage", "/v1/nothing"):
        answer = await api.client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = await api.client.post("/v1/sessions", json={"template": "nothing"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "template_not_found")


async def test_bad_json_and_a_wrong_cursor_are_told(api: Api) -> None:
    headers = {"content-type": "application/json"}
    answer = await api.client.post("/v1/sessions", content=b'{"name": ', headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    answer = await api.client.get("/v1/sessions", params={"after": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
