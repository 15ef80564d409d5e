"""Jupyter's clients on their own machine, with kernels at a service: what they do with local ones, by its URL.

The sockets' bytes go through WebSockets, which are also held to their manners: what is refused, and how they close.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
import websockets
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from kernel_client import ToldManager, connected, run, wait_for
from served import SECONDS, Api

pytestmark = pytest.mark.machine


@pytest.fixture(scope="session")
def kernelspec(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a kernelspec with the service's URL is installed."""
    prefix = tmp_path_factory.mktemp("by-url")
    command = [sys.executable, "-c", "from interpreter.cli import main; main()", "kernelspec", "install"]
    more = ["-t", "base", "--name", "by-url", "--url", f"http://127.0.0.1:{api.port}", "--prefix", str(prefix)]
    subprocess.run([*command, *more], check=True)
    return prefix


@pytest.fixture
async def manager(kernelspec: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[ToldManager]:
    monkeypatch.setenv("JUPYTER_PATH", str(kernelspec / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(kernelspec / "runtime"))
    manager = ToldManager(kernel_name="by-url")
    await manager.start_kernel()
    manager.launched.clear()
    yield manager
    if manager.has_kernel:
        await manager.shutdown_kernel()


@pytest.fixture
async def client(manager: ToldManager) -> AsyncGenerator[AsyncKernelClient]:
    client = await connected(manager)
    yield client
    client.stop_channels()


async def running(api: Api) -> list[dict[str, Any]]:
    return (await api.client.get("/v1/sessions", params={"state": "running"})).json()["sessions"]


async def test_code_runs_at_the_service_and_the_session_ends_with_the_kernel(
    api: Api, manager: ToldManager, client: AsyncKernelClient
) -> None:
    assert await run(client, "6 * 7") == "42"
    (session,) = [one for one in await running(api) if one["name"] == "jupyter"]
    assert session["timeout_mode"] == "idle"
    await manager.shutdown_kernel()
    answer = await api.client.get(f"/v1/sessions/{session['id']}")
    assert answer.json()["state"] == "stopped"


async def test_restart_keeps_files_and_drops_variables(manager: ToldManager, client: AsyncKernelClient) -> None:
    before = manager.get_connection_info()
    await run(client, "x = 1; open('kept', 'w').write('data')")
    for now in (False, True):
        await manager.restart_kernel(now=now)
        await client.wait_for_ready(timeout=SECONDS)
        assert await run(client, "x") == "NameError"
        assert await run(client, "open('kept').read()") == "'data'"
    assert manager.get_connection_info() == before


async def test_interrupt(manager: ToldManager, client: AsyncKernelClient) -> None:
    request = client.execute("print('go', flush=True)\nwhile True: pass")
    await wait_for(client, request, "stream")
    await manager.interrupt_kernel()
    assert (await wait_for(client, request, "error"))["content"]["ename"] == "KeyboardInterrupt"


async def test_a_kernel_that_dies_is_started_again_in_its_session(
    manager: ToldManager, client: AsyncKernelClient
) -> None:
    await run(client, "open('kept', 'w').write('data')")
    client.execute("import os; os._exit(3)")
    async with asyncio.timeout(SECONDS):
        await manager.launched.wait()
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "open('kept').read()") == "'data'"


async def test_a_kernel_whose_session_was_stopped_is_started_again_in_a_new_one(
    api: Api, manager: ToldManager, client: AsyncKernelClient
) -> None:
    before = manager.get_connection_info()
    (session,) = [one for one in await running(api) if one["name"] == "jupyter"]
    await api.client.delete(f"/v1/sessions/{session['id']}")
    async with asyncio.timeout(SECONDS):
        await manager.launched.wait()
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "1 + 1") == "2"
    assert manager.get_connection_info() == before


async def test_eight_megabytes_pass_both_ways_byte_for_byte(client: Any) -> None:
    sent = [os.urandom(8_000_000), b"", b"\0" * 70_000]
    await run(
        client,
        "from comm import get_comm_manager\n"
        "def opened(comm, message):\n"
        "    comm.send({'n': 1}, buffers=[bytes(b) for b in message['buffers']][::-1])\n"
        "get_comm_manager().register_target('echo', opened)",
    )
    content = {"comm_id": "c", "target_name": "echo", "data": {}}
    message = client.session.msg("comm_open", content)
    client.session.send(client.shell_channel.socket, message, buffers=sent)
    echoed = await wait_for(client, message["header"]["msg_id"], "comm_msg")
    assert [bytes(buffer) for buffer in echoed["buffers"]] == sent[::-1]


async def test_code_of_the_service_runs_beside_it_with_the_clients_key(
    api: Api, manager: ToldManager, client: AsyncKernelClient
) -> None:
    (session,) = [one for one in await running(api) if one["name"] == "jupyter"]
    await run(client, "shared = 42")
    assert await api.printed(session["id"], "print(shared)") == "42\n"
    answer = await api.client.get(f"/v1/sessions/{session['id']}/contexts/main/connection")
    assert answer.json()["key"] == manager.session.key.decode()


async def test_the_launcher_uses_the_service_too(api: Api, kernelspec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(kernelspec / "share" / "jupyter"))
    kernels = kernelspec / "share" / "jupyter" / "kernels"
    document = json.loads((kernels / "by-url" / "kernel.json").read_text())
    del document["metadata"]["kernel_provisioner"]
    (kernels / "launched-by-url").mkdir()
    (kernels / "launched-by-url" / "kernel.json").write_text(json.dumps(document))
    manager = AsyncKernelManager(kernel_name="launched-by-url")
    await manager.start_kernel()
    client = await connected(manager)
    assert await run(client, "1 + 1") == "2"
    assert [one["name"] for one in await running(api)].count("jupyter") == 1
    client.stop_channels()
    await manager.shutdown_kernel()
    assert [one["name"] for one in await running(api)].count("jupyter") == 0


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("{}/contexts/main/channels/nothing", 404, "not_found"),
        ("{}/contexts/nothing/channels/shell", 404, "not_found"),
        ("{}/contexts/nothing/changes", 404, "not_found"),
        ("nothing/contexts/main/channels/shell", 404, "not_found"),
        ("nothing/contexts/main/changes", 404, "not_found"),
    ],
)
async def test_what_is_not_there_is_refused_before_the_upgrade(
    api: Api, shared: str, path: str, status: int, code: str
) -> None:
    with pytest.raises(websockets.InvalidStatus) as refusal:
        await websockets.connect(f"ws://127.0.0.1:{api.port}/v1/sessions/{path.format(shared)}")
    assert refusal.value.response.status_code == status
    assert f'"code":"{code}"'.encode() in refusal.value.response.body


async def test_a_session_that_is_over_is_refused(api: Api) -> None:
    session = await api.new()
    await api.client.delete(f"/v1/sessions/{session}")
    with pytest.raises(websockets.InvalidStatus) as refusal:
        await websockets.connect(tunnel(api, session, "shell"))
    assert refusal.value.response.status_code == 409


async def test_text_is_refused_and_an_empty_message_is_nothing(api: Api, shared: str) -> None:
    async with websockets.connect(tunnel(api, shared, "shell")) as socket:
        assert (await socket.recv())[:1] == b"\xff"
        await socket.send(b"")
        await socket.send("text")
        await socket.wait_closed()
        assert socket.close_code == 1008


async def test_what_is_no_zmtp_ends_only_its_own_connection(api: Api, shared: str) -> None:
    async with websockets.connect(tunnel(api, shared, "shell")) as socket:
        await socket.send(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NOTHING".ljust(52, b"\0"))
        async with asyncio.timeout(SECONDS):
            await socket.wait_closed()
        assert socket.close_code == 1011
    assert await api.printed(shared, "print(1)") == "1\n"


async def test_a_death_is_told_also_to_who_comes_later(api: Api, session_id: str) -> None:
    changes = f"ws://127.0.0.1:{api.port}/v1/sessions/{session_id}/contexts/main/changes"
    async with websockets.connect(changes) as socket, websockets.connect(tunnel(api, session_id, "hb")) as beat:
        await api.run(session_id, "import os; os._exit(5)")
        assert await socket.recv() == '{"change":"died","status":5}'
        await beat.wait_closed()
        assert beat.close_code == 1011
    async with websockets.connect(changes) as socket:
        assert await socket.recv() == '{"change":"died","status":5}'
        await api.client.post(f"/v1/sessions/{session_id}/restart")
        assert [await socket.recv(), await socket.recv()] == ['{"change":"restarting"}', '{"change":"restarted"}']
        await api.client.delete(f"/v1/sessions/{session_id}")
        assert await socket.recv() == '{"change":"ended"}'
        await socket.wait_closed()
        assert socket.close_code == 1011


@pytest.mark.parametrize("key", ["", "new-key"])
async def test_a_key_can_be_chosen(api: Api, session_id: str, key: str) -> None:
    path = f"/v1/sessions/{session_id}/contexts/main/connection"
    assert (await api.client.put(path, json={"key": key})).status_code == 204
    about = (await api.client.get(path)).json()
    assert (about["key"], about["signature_scheme"]) == (key, "hmac-sha256")
    assert await api.printed(session_id, "print(1)") == "1\n"
    await api.client.post(f"/v1/sessions/{session_id}/restart")
    assert await api.printed(session_id, "print(2)") == "2\n"


@pytest.mark.parametrize("key", ["é", "a\nb", "x" * 257, 5, None])
async def test_what_cannot_be_a_key_is_refused(api: Api, shared: str, key: object) -> None:
    path = f"/v1/sessions/{shared}/contexts/main/connection"
    assert (await api.client.put(path, json={"key": key})).status_code == 422


async def test_a_session_with_an_open_tunnel_is_used(api: Api, session_id: str) -> None:
    live = api.service.sessions.live_session(session_id)
    assert live is not None
    assert not live.is_used
    async with websockets.connect(tunnel(api, session_id, "shell")) as socket:
        await socket.recv()
        assert live.is_used
    assert await eventually(lambda: not live.is_used)


def tunnel(api: Api, session: str, channel: str) -> str:
    return f"ws://127.0.0.1:{api.port}/v1/sessions/{session}/contexts/main/channels/{channel}"


async def eventually(holds: Callable[[], bool]) -> bool:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110  (a number that nothing tells of)
            await asyncio.sleep(0)
    return True
