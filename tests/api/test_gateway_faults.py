"""Kernels that are restarted twice at once, cannot be restarted, or speak wrongly: told, and mended by a restart."""

import asyncio

import pytest
import websockets
from channels_client import channels, live_of
from served import SECONDS, Api

from interpreter.engine.kernel import KernelChange

pytestmark = pytest.mark.machine

DIES_WHEN_TOLD = """
import os, pathlib, time
print('runs', flush=True)
while not pathlib.Path('now').exists():
    time.sleep(0.05)
os._exit(7)
"""
ENDS_AT_ONCE = ".ipython/profile_default/startup/ends.py"


async def restart(api: Api, kernel: str) -> int:
    return (await api.client.post(f"/api/kernels/{kernel}/restart")).status_code


async def test_restarts_at_once_are_so_many_restarts_and_no_death(api: Api, kernel: str) -> None:
    changes: list[KernelChange] = []
    with live_of(api, kernel).session.main.watched(lambda change, _: changes.append(change)):
        async with channels(api, kernel) as client:
            assert await asyncio.gather(*(restart(api, kernel) for _ in range(3))) == [200, 200, 200]
            await client.printed("x = 1")
            # What a death would set off comes in between.
            assert await client.printed("import time; time.sleep(1); print(x)") == "1\n"
    assert changes == ["restarting", "restarted"] * 3


async def test_a_kernel_that_dies_while_it_is_restarted_by_hand_is_started_once_more_at_most(
    api: Api, kernel: str
) -> None:
    changes: list[KernelChange] = []
    with live_of(api, kernel).session.main.watched(lambda change, _: changes.append(change)):
        async with channels(api, kernel) as client:
            await client.ask("import os; os._exit(7)")
            await client.until(lambda frame: frame.content.get("execution_state") == "restarting")
            assert await restart(api, kernel) == 200
            assert await client.printed("import time; time.sleep(1); print('alive')") == "alive\n"
    assert changes == ["died", "restarting", "restarted", "restarting", "restarted"]


async def test_a_restart_that_fails_leaves_nobody_waiting_and_the_next_one_mends_it(api: Api, kernel: str) -> None:
    session = f"/v1/sessions/{kernel.replace('-', '')}"
    params = {"path": ENDS_AT_ONCE}
    async with channels(api, kernel, "mine") as client:
        written = await api.client.put(f"{session}/files/content", params=params, content=b"import os\nos._exit(1)\n")
        assert written.status_code == 201
        assert await restart(api, kernel) == 409
        await client.until(lambda frame: frame.content.get("execution_state") == "dead")
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "dead"
        # Whoever has code run now is told, at once.
        async with asyncio.timeout(SECONDS):
            result = (await api.client.post(f"{session}/execute", json={"code": "1"})).json()
        assert (result["status"], result["error"]["code"]) == ("kernel_died", "kernel_died")
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with channels(api, kernel, "another"):
                pass
        assert refused.value.response.status_code == 409
        assert (await api.client.delete(f"{session}/files", params=params)).status_code == 204
        assert await restart(api, kernel) == 200
        assert await client.printed("print('alive')") == "alive\n"


async def test_a_kernel_whose_messages_are_no_longer_its_own_is_started_again(api: Api, kernel: str) -> None:
    async with channels(api, kernel, "mine") as client:
        await client.ask("get_ipython().kernel.session.key = b'stranger'")
        await client.until(lambda frame: frame.content.get("execution_state") == "restarting")
        assert await client.printed("print('alive')") == "alive\n"
    session = f"/v1/sessions/{kernel.replace('-', '')}"
    result = (await api.client.post(f"{session}/execute", json={"code": "1 + 1"})).json()
    assert result["outputs"][0]["data"]["text/plain"] == "2"


@pytest.mark.parametrize("v1", [False, True], ids=["default", "v1"])
async def test_who_waits_for_a_kernel_that_dies_is_answered(api: Api, kernel: str, *, v1: bool) -> None:
    async with channels(api, kernel, v1=v1) as client:
        running = await client.ask(DIES_WHEN_TOLD)
        await client.until(lambda frame: frame.type == "stream")
        queued = await client.ask("1 + 1")
        completion = await client.send("complete_request", {"code": "pri", "cursor_pos": 3})
        # Answered beside the code that runs: by then the kernel has all the others.
        await client.answered(await client.send("kernel_info_request", {}, channel="control"))
        await api.client.put(f"/v1/sessions/{kernel.replace('-', '')}/files/content?path=now", content=b"")
        frames = await client.until(lambda frame: frame.content.get("execution_state") == "restarting")
        replies = {frame.parent["msg_id"]: frame for frame in frames if frame.channel == "shell"}
        idle = [frame.parent.get("msg_id") for frame in frames if frame.content.get("execution_state") == "idle"]
        for request in (running, queued, completion):
            assert replies[request].content["status"] == "error"
            assert "the kernel died (exit status 7)" in replies[request].content["evalue"]
            assert idle.count(request) == 1
        errors = [frame.parent["msg_id"] for frame in frames if frame.type == "error"]
        assert errors == [running]
        assert await client.printed("print('alive')") == "alive\n"


async def test_control_requests_are_answered_too_and_all_of_it_again_when_it_is_dead(api: Api, kernel: str) -> None:
    session = f"/v1/sessions/{kernel.replace('-', '')}"
    async with channels(api, kernel, "mine") as client:
        # Python's lock is held: the kernel answers on no channel.
        await client.ask("import ctypes\nprint('runs', flush=True)\nctypes.PyDLL(None).sleep(600)")
        await client.until(lambda frame: frame.type == "stream")
        asked = await client.send("kernel_info_request", {}, channel="control")
        assert await restart(api, kernel) == 200
        reply, idle = await client.answered(asked)
        assert (reply.channel, reply.content["ename"]) == ("control", "KernelDied")
        assert idle.content == {"execution_state": "idle"}
        params = {"path": ENDS_AT_ONCE}
        await api.client.put(f"{session}/files/content", params=params, content=b"import os\nos._exit(1)\n")
        assert await restart(api, kernel) == 409
        await client.until(lambda frame: frame.content.get("execution_state") == "dead")
        for request in ("execute_request", "complete_request", "inspect_request", "is_complete_request"):
            frames = await client.answered(await client.send(request, {"code": "1", "cursor_pos": 1}))
            reply = next(frame for frame in frames if frame.channel == "shell")
            assert reply.type == request.replace("request", "reply")
            assert (reply.content["status"], reply.content["ename"]) == ("error", "KernelDied")
        await api.client.delete(f"{session}/files", params=params)


async def test_what_is_asked_during_a_restart_is_answered_whichever_kernel_it_meets(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        restarting = asyncio.create_task(restart(api, kernel))
        waiting = {await client.ask(f"print({number})") for number in range(20)}
        while waiting:
            frame = await client.receive()
            if frame.content.get("execution_state") == "idle":
                waiting.discard(frame.parent.get("msg_id", ""))
        assert await restarting == 200
        assert await client.printed("print('alive')") == "alive\n"


async def test_completion_is_no_activity(api: Api, kernel: str) -> None:
    async def last_activity() -> str:
        return (await api.client.get(f"/api/kernels/{kernel}")).json()["last_activity"]

    async with channels(api, kernel) as client:
        before = await last_activity()
        await client.answered(await client.send("complete_request", {"code": "pri", "cursor_pos": 3}))
        assert await last_activity() == before
        await client.printed("print(1)")
        assert await last_activity() > before
