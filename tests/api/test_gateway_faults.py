"""Kernels that are restarted twice at once, cannot be restarted, or speak wrongly: told, and mended by a restart."""

import asyncio

import pytest
import websockets
from channels_client import channels, live_of
from served import SECONDS, Api

from interpreter.engine.kernel import KernelChange

pytestmark = pytest.mark.machine

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


async def test_completion_is_no_activity(api: Api, kernel: str) -> None:
    async def last_activity() -> str:
        return (await api.client.get(f"/api/kernels/{kernel}")).json()["last_activity"]

    async with channels(api, kernel) as client:
        before = await last_activity()
        await client.answered(await client.send("complete_request", {"code": "pri", "cursor_pos": 3}))
        assert await last_activity() == before
        await client.printed("print(1)")
        assert await last_activity() > before
