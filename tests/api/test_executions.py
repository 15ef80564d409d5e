"""Code over REST: one answer or a stream of events, limits, input, contexts, detaching, and clients that go away."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from served import SECONDS, Api

pytestmark = pytest.mark.machine

EVENTS = {"Accept": "text/event-stream"}


async def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    return [
        json.loads(line.removeprefix("data: ")) async for line in response.aiter_lines() if line.startswith("data: ")
    ]


async def test_one_answer_has_outputs_joined_and_whole_bundles(api: Api, shared: str) -> None:
    code = (
        "from IPython.display import display\nfor i in range(3): print(i, flush=True)\n"
        "display({'image/png': 'iVBORw0=', 'application/vnd.vegalite.v5+json': {'mark': 'bar'}}, raw=True)\n6 * 7"
    )
    result = await api.run(shared, code)
    stream, display, value = result["outputs"]
    assert (result["status"], stream["text"], value["data"]) == ("ok", "0\n1\n2\n", {"text/plain": "42"})
    assert display["data"] == {"image/png": "iVBORw0=", "application/vnd.vegalite.v5+json": {"mark": "bar"}}


async def test_an_exception_is_a_result_with_its_traceback(api: Api, shared: str) -> None:
    result = await api.run(shared, "1 / 0")
    assert (result["status"], result["error"]["ename"], result["error"]["evalue"]) == (
        *("error", "ZeroDivisionError"),
        "division by zero",
    )
    assert result["error"]["traceback"]


async def test_a_silent_exception_is_told_too(api: Api, shared: str) -> None:
    result = await api.run(shared, "1 / 0", silent=True)
    assert (result["status"], result["error"]["ename"]) == ("error", "ZeroDivisionError")


async def test_events_come_while_the_code_runs(api: Api, shared: str) -> None:
    url, body = (
        f"/v1/sessions/{shared}/execute",
        {"code": "print('a', flush=True)\nprint(input('name? '))", "allow_stdin": True},
    )
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(SECONDS), api.client.stream("POST", url, json=body, headers=EVENTS) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            seen.append(json.loads(line.removeprefix("data: ")))
            if seen[-1]["type"] == "input_request":
                # The code waits for this answer: what came before came while it ran.
                answer = await api.client.post(f"/v1/sessions/{shared}/stdin", json={"value": "Ada"})
                assert answer.status_code == 204
    assert [event["type"] for event in seen] == ["started", "stream", "input_request", "stream", "done"]
    assert (seen[2]["prompt"], seen[3]["text"], seen[4]["status"]) == ("name? ", "Ada\n", "ok")


async def test_input_that_nobody_asked_for_is_a_conflict(api: Api, shared: str) -> None:
    answer = await api.client.post(f"/v1/sessions/{shared}/stdin", json={"value": "x"})
    assert answer.status_code == 409


async def test_input_raises_when_it_was_not_allowed(api: Api, shared: str) -> None:
    assert (await api.run(shared, "input()"))["error"]["ename"] == "StdinNotImplementedError"


async def test_a_timeout_interrupts_and_keeps_variables(api: Api, session_id: str) -> None:
    await api.run(session_id, "kept = 1")
    result = await api.run(session_id, "while True: pass", timeout=5)
    assert (result["status"], result["kernel_restarted"], result["error"]["code"]) == (
        *("timeout", False),
        "execution_timeout",
    )
    assert await api.printed(session_id, "print(kept)") == "1\n"


async def test_a_timeout_restarts_what_cannot_be_interrupted(api: Api, session_id: str) -> None:
    code = "import signal\nlost = signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    result = await api.run(session_id, code, timeout=5)
    assert (result["status"], result["kernel_restarted"]) == ("timeout", True)
    assert await api.printed(session_id, "print('lost' in globals())") == "False\n"


async def test_interrupt_and_restart(api: Api, session_id: str) -> None:
    url, body = f"/v1/sessions/{session_id}/execute", {"code": "x = 1\nprint('runs', flush=True)\nwhile True: pass"}
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(SECONDS), api.client.stream("POST", url, json=body, headers=EVENTS) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if events[-1]["type"] == "stream":
                    assert (await api.client.post(f"/v1/sessions/{session_id}/interrupt")).status_code == 204
    assert events[-1]["error"]["ename"] == "KeyboardInterrupt"
    assert await api.printed(session_id, "print(x)") == "1\n"
    assert (await api.client.post(f"/v1/sessions/{session_id}/restart")).status_code == 204
    assert await api.printed(session_id, "print('x' in globals())") == "False\n"


async def test_a_kernel_that_dies_is_told_and_can_be_restarted(api: Api, session_id: str) -> None:
    result = await api.run(session_id, "import os\nos.kill(os.getpid(), 11)")
    assert (result["status"], result["error"]["code"]) == ("kernel_died", "kernel_died")
    await api.client.post(f"/v1/sessions/{session_id}/restart")
    assert await api.printed(session_id, "print(1)") == "1\n"


async def test_output_past_the_limit_is_cut_and_says_so(api: Api, session_id: str) -> None:
    result = await api.run(session_id, "for _ in range(300): print('x' * 99_999, flush=True)\nprint('end')")
    size = sum(len(output.get("text", "")) for output in result["outputs"])
    assert (result["status"], result["truncated"]) == ("ok", True)
    assert 1_000_000 < size <= 10_000_000
    assert result["outputs"][-1]["type"] == "truncated"


async def test_one_output_that_is_too_long_to_be_told_is_missed_by_nobody(api: Api, session_id: str) -> None:
    result = await api.run(session_id, "'y' * 40_000_000")
    assert (result["status"], result["truncated"]) == ("ok", True)
    (notice,) = result["outputs"]
    assert notice["text"].startswith("[An output was left out: it has 4000")
    assert await api.printed(session_id, "print(1)") == "1\n"


async def test_requests_are_independent_one_that_fails_takes_none_along(api: Api, shared: str) -> None:
    codes = ["1 / 0" if number % 2 else f"print({number})" for number in range(6)]
    results = await asyncio.gather(*(api.run(shared, code) for code in codes))
    assert [result["status"] for result in results] == ["ok", "error"] * 3


async def test_contexts_have_variables_of_their_own_and_run_side_by_side(api: Api, session_id: str) -> None:
    url = f"/v1/sessions/{session_id}/contexts"
    assert (await api.client.post(url, json={"context_id": "two"})).status_code == 201
    assert (await api.client.post(url, json={"context_id": "two"})).status_code == 409
    names = [context["context_id"] for context in (await api.client.get(url)).json()["contexts"]]
    assert names == ["main", "two"]
    await api.run(session_id, "x = 1")
    assert await api.printed(session_id, "print('x' in globals())", context_id="two") == "False\n"
    body = {"code": "input()", "allow_stdin": True, "detach": True}
    await api.client.post(f"/v1/sessions/{session_id}/execute", json=body)
    # The main context waits for input; the other one answers.
    assert await api.printed(session_id, "print(2)", context_id="two") == "2\n"
    assert (await api.client.delete(f"{url}/two")).status_code == 204
    assert (await api.client.delete(f"{url}/main")).status_code == 409
    missing = await api.client.post(f"/v1/sessions/{session_id}/execute", json={"code": "1", "context_id": "two"})
    assert missing.status_code == 404


async def test_a_detached_execution_runs_on_and_can_be_fetched(api: Api, session_id: str) -> None:
    body = {"code": "print('first', flush=True)\nx = input()\nprint(x)", "allow_stdin": True, "detach": True}
    started = await api.client.post(f"/v1/sessions/{session_id}/execute", json=body)
    assert started.status_code == 202
    url = f"/v1/sessions/{session_id}/executions"
    (listed,) = (await api.client.get(url)).json()["executions"]
    assert listed["execution_id"] == started.json()["execution_id"]
    one = f"{url}/{listed['execution_id']}"
    async with asyncio.timeout(SECONDS), api.client.stream("GET", f"{one}/events") as response:
        async for line in response.aiter_lines():
            if "input_request" in line:
                break
    # Leaving a detached execution's events does not interrupt it.
    await api.client.post(f"/v1/sessions/{session_id}/stdin", json={"value": "answer"})
    ended = (await api.client.get(one, params={"wait": 30})).json()
    assert (ended["state"], ended["result"]["outputs"][0]["text"]) == ("done", "first\nanswer\n")
    await api.client.delete(f"/v1/sessions/{session_id}")
    assert (await api.client.get(one)).json() == ended


@pytest.mark.parametrize("headers", [EVENTS, {}], ids=["events", "answer"])
async def test_a_client_that_goes_away_interrupts_its_code(api: Api, session_id: str, headers: dict[str, str]) -> None:
    code = "try:\n    open('begun', 'w').close()\n    while True: pass\nexcept KeyboardInterrupt:\n    stopped = True"
    url, body = f"/v1/sessions/{session_id}/execute", {"code": code}

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=api.client.base_url, headers=headers) as client:
            await client.post(url, json=body, timeout=SECONDS)

    leaving = asyncio.create_task(leave())
    async with asyncio.timeout(SECONDS):
        while (
            await api.client.get(f"/v1/sessions/{session_id}/files/entry", params={"path": "begun"})
        ).status_code != 200:
            continue
    leaving.cancel()
    assert await api.printed(session_id, "print(stopped)") == "True\n"


async def test_a_client_that_goes_away_before_its_code_has_begun_interrupts_it_too(api: Api, session_id: str) -> None:
    url, body = f"/v1/sessions/{session_id}/execute", {"code": "while True: pass"}
    await api.run(session_id, "kept = 1")
    for _ in range(5):
        async with api.client.stream("POST", url, json=body, headers=EVENTS) as response:
            async for line in response.aiter_lines():
                if "started" in line:
                    break
    assert await api.printed(session_id, "print(kept)") == "1\n"


async def test_a_slow_reader_holds_nobody_up(api: Api, session_id: str) -> None:
    url, body = f"/v1/sessions/{session_id}/execute", {"code": "for _ in range(50): print('x' * 100_000, flush=True)"}
    async with api.client.stream("POST", url, json=body, headers=EVENTS) as response:
        # Nothing of it is read while another request runs behind it in the same kernel.
        assert await api.printed(session_id, "print('behind')") == "behind\n"
        events = await events_of(response)
    assert sum(len(event.get("text", "")) for event in events) == 50 * 100_001
    assert events[-1]["status"] == "ok"


async def test_fifty_clients_at_once_on_one_session_each_get_their_own(api: Api, session_id: str) -> None:
    results = await asyncio.gather(*(api.printed(session_id, f"print({number})") for number in range(50)))
    assert results == [f"{number}\n" for number in range(50)]


async def test_more_than_the_queue_holds_is_refused_with_retry_after(api: Api, session_id: str) -> None:
    url, body = f"/v1/sessions/{session_id}/execute", {"code": "input()", "allow_stdin": True, "detach": True}
    answers = [await api.client.post(url, json=body) for _ in range(101)]
    assert {answer.status_code for answer in answers[:100]} == {202}
    assert answers[100].status_code == 429
    assert int(answers[100].headers["retry-after"]) >= 1
