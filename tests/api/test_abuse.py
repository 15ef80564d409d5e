"""What a hostile or unlucky guest or client does stays its own trouble: the service answers others as before."""

import asyncio
import gc
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from served import SECONDS, Api, own_home, serve

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

BOMB = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""
HUNGRY = "held = []\nwhile True: held.append(bytearray(b'x' * 10_000_000))"


@pytest.mark.parametrize("code", [BOMB, HUNGRY], ids=["fork bomb", "out of memory"])
async def test_a_guest_that_exhausts_itself_loses_its_kernel_at_most(
    api: Api, session_id: str, shared: str, code: str
) -> None:
    url, body = f"/v1/sessions/{session_id}/execute", {"code": code, "timeout": 15}
    quiet = [await seconds_of_an_answer(api, shared) for _ in range(5)]
    exhausting = asyncio.create_task(api.client.post(url, json=body, timeout=300))
    await answers_until(exhausting, api, shared, max(quiet))
    assert exhausting.result().json()["status"] in {"kernel_died", "timeout"}
    # The agent has memory and a share of the processor of its own: it ends all that the code has started.
    assert (await api.client.post(f"/v1/sessions/{session_id}/restart")).status_code == 204
    assert await api.printed(session_id, "print('again')") == "again\n"
    left = await api.client.post(f"/v1/sessions/{session_id}/commands", json={"command": "ls -d /proc/[0-9]* | wc -l"})
    assert int(left.json()["stdout"]) < 100


async def test_a_cell_that_prints_without_end_is_ended_by_its_time(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    # A limit that any guest reaches in its time, on however busy a computer.
    home = own_home(settings, tmp_path / "home")
    async with serve(Settings(home=home, default_template="base", output_limit=200_000)) as api:
        printing_session, other = await api.new(), await api.new()
        quiet = [await seconds_of_an_answer(api, other) for _ in range(5)]
        # Flushed, so that it waits for who reads: else the kernel's memory might be full before its time is over.
        code = "while True: print('x' * 100_000, flush=True)"
        printing = asyncio.create_task(api.run(printing_session, code, timeout=10))
        await answers_until(printing, api, other, max(quiet))
        result = await printing
        assert (result["status"], result["truncated"]) == ("timeout", True)
        assert len(result["outputs"][0]["text"]) <= 200_000
        await api.client.post(f"/v1/sessions/{printing_session}/restart")
        assert await api.printed(printing_session, "print('again')") == "again\n"


async def seconds_of_an_answer(api: Api, session_id: str) -> float:
    began = time.monotonic()
    assert await api.printed(session_id, "print(1)") == "1\n"
    return time.monotonic() - began


async def answers_until(done: "asyncio.Task[Any]", api: Api, session_id: str, quiet: float) -> None:
    """Another session is asked all the while: its slowest answer is no standstill of the service."""
    slowest = 0.0
    while not done.done():
        slowest = max(slowest, await seconds_of_an_answer(api, session_id))
    # A machine that burns its processor is felt; far more than that, and the service itself has stood still.
    assert slowest <= max(20 * quiet, 5.0)


async def test_a_header_of_a_megabyte_is_refused(api: Api, shared: str) -> None:
    def send() -> bytes:
        with socket.create_connection(("127.0.0.1", api.port), timeout=SECONDS) as connection:
            try:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                # Refused before all of it was sent.
                return b"HTTP/1.1 4"
            return connection.recv(10)

    assert (await asyncio.to_thread(send)).startswith(b"HTTP/1.1 4")
    assert (await api.client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{",
        b"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no request", "body cut short", "bad chunk"],
)
async def test_a_connection_that_breaks_off_leaves_the_service_well(api: Api, sent: bytes) -> None:
    def break_off() -> None:
        with socket.create_connection(("127.0.0.1", api.port), timeout=SECONDS) as connection:
            connection.sendall(sent)
            # Reset, not closed: the service's next write fails.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    await asyncio.to_thread(break_off)
    assert (await api.client.get("/readyz")).status_code == 200


async def test_a_body_of_json_over_its_limit_is_refused(api: Api) -> None:
    async def pieces():
        for _ in range(20):
            yield b" " * 1024 * 1024

    headers = {"content-type": "application/json"}
    answer = await api.client.post("/v1/sessions", content=pieces(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_sessions_come_and_go_and_leave_nothing(api: Api) -> None:
    async def one() -> None:
        session_id = await api.new()
        assert await api.printed(session_id, "print(1)") == "1\n"
        await api.client.delete(f"/v1/sessions/{session_id}")

    # As many at once as later: each has a connection that stays, with a descriptor at both of its ends.
    await asyncio.gather(*(one() for _ in range(4)))
    before = footprint(api)
    rounds = int(os.environ.get("INTERPRETER_TEST_SESSIONS", "40"))
    for _ in range(rounds // 4):
        await asyncio.gather(*(one() for _ in range(4)))
    after = footprint(api)
    assert after["machines"] == before["machines"]
    assert after["descriptors"] <= before["descriptors"] + 4
    assert after["tasks"] <= before["tasks"] + 4
    assert after["memory"] <= before["memory"] + 30_000_000


async def test_without_a_key_web_pages_cannot_call(api: Api) -> None:
    for headers in ({"Host": "attacker.example"}, {"Origin": "http://attacker.example"}):
        answer = await api.client.get("/v1/sessions", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


def footprint(api: Api) -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return {
        "machines": len(list(api.service.settings.machines_home.iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "memory": int(memory.split()[1]) * 1024,
    }
