"""A kernel's channels over WebSockets: what front ends do with them, and what happens when something goes wrong."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
import websockets
from channels_client import Channels, channels, live_of, new_kernel, text_of
from pydantic import SecretStr
from served import SECONDS, Api, own_home, serve

from interpreter import Engine, Settings

pytestmark = pytest.mark.machine

KEY = "a-key-of-the-tests"
both = pytest.mark.parametrize("v1", [False, True], ids=["json", "v1"])


@both
async def test_code_gives_its_outputs_in_order_then_reply_and_idle(api: Api, kernel: str, v1: bool) -> None:
    async with channels(api, kernel, v1=v1) as client:
        frames = await client.execute("print('out'); import sys; print('err', file=sys.stderr); 6 * 7")
    types = [frame.type for frame in frames if frame.channel == "iopub"]
    assert types == ["status", "execute_input", "stream", "stream", "execute_result", "status"]
    assert next(frame for frame in frames if frame.type == "execute_reply").content["status"] == "ok"
    assert next(f for f in frames if f.type == "execute_result").content["data"]["text/plain"] == "42"


@both
async def test_input_is_asked_of_the_client_that_ran_the_code(api: Api, kernel: str, v1: bool) -> None:
    async with channels(api, kernel, v1=v1) as client, channels(api, kernel) as other:
        asked = await client.ask("name = input('who? '); print('hello', name)", allow_stdin=True)
        question = (await client.until(lambda frame: frame.channel == "stdin"))[-1]
        assert question.type == "input_request"
        assert question.content["prompt"] == "who? "
        await client.send("input_reply", {"value": "you"}, "stdin")
        assert text_of(await client.answered(asked)) == "hello you\n"
        seen = await other.until(lambda f: f.type == "status" and f.content["execution_state"] == "idle")
        assert {frame.channel for frame in seen} == {"iopub"}


async def test_two_clients_see_all_output_and_only_their_own_replies(api: Api, kernel: str) -> None:
    async with channels(api, kernel, "one") as one, channels(api, kernel, "two") as two:
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["connections"] == 2
        asked = [await client.ask(f"print('from {client.session}')") for client in (one, two)]
        for client in (one, two):
            idle: set[str] = set()
            text = ""
            replies: list[str] = []
            while len(idle) < 2 or not replies:
                frame = await client.receive()
                if frame.channel == "shell":
                    replies.append(frame.parent["msg_id"])
                elif frame.type == "stream":
                    text += frame.content["text"]
                elif frame.type == "status" and frame.content["execution_state"] == "idle":
                    idle.add(frame.parent["msg_id"])
            # Two clients' requests have no order between them.
            assert sorted(text.splitlines()) == ["from one", "from two"]
            assert idle == set(asked)
            assert replies == [asked[client is two]]


async def test_code_that_runs_over_rest_is_seen_by_a_connected_front_end(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        assert await api.printed(kernel.replace("-", ""), "print('over rest')") == "over rest\n"
        frames = await client.until(lambda f: f.type == "status" and f.content["execution_state"] == "idle")
        assert text_of(frames) == "over rest\n"


async def test_a_loop_is_interrupted(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        asked = await client.ask("print('began', flush=True)\nwhile True: pass")
        await client.until(lambda frame: frame.type == "stream")
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "busy"
        assert (await api.client.post(f"/api/kernels/{kernel}/interrupt", json={})).status_code == 204
        frames = await client.answered(asked)
        assert next(frame for frame in frames if frame.type == "error").content["ename"] == "KeyboardInterrupt"
        # An interrupt by message does the same, on the control channel, while the kernel is busy.
        asked = await client.ask("print('began', flush=True)\nwhile True: pass")
        await client.until(lambda frame: frame.type == "stream")
        await client.send("interrupt_request", {}, "control")
        frames = await client.answered(asked)
        assert next(frame for frame in frames if frame.type == "error").content["ename"] == "KeyboardInterrupt"


async def test_control_is_answered_while_the_kernel_is_busy_and_it_stays_busy(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        asked = await client.ask("input()", allow_stdin=True)
        await client.until(lambda frame: frame.type == "input_request")
        info = await client.answered(await client.send("kernel_info_request", {}, "control"))
        assert next(f for f in info if f.channel == "control").content["language_info"]["name"] == "python"
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "busy"
        await client.send("input_reply", {"value": ""}, "stdin")
        await client.answered(asked)
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "idle"


@both
async def test_comms_carry_buffers_both_ways(api: Api, kernel: str, v1: bool) -> None:
    code = """
def opened(comm, message):
    comm.on_msg(lambda message: comm.send({"n": 1}, buffers=[bytes(b)[::-1] for b in message["buffers"]]))
get_ipython().kernel.comm_manager.register_target("mirror", opened)
"""
    async with channels(api, kernel, v1=v1) as client:
        await client.execute(code)
        comm = uuid.uuid4().hex
        await client.open_comm(comm, "mirror")
        buffers = [b"", b"\x00\x01\xff", bytes(range(256)) * 4000]
        await client.send("comm_msg", {"comm_id": comm, "data": {}}, buffers=buffers)
        frames = await client.until(lambda frame: frame.type == "comm_msg")
        assert frames[-1].buffers == [buffer[::-1] for buffer in buffers]


async def test_what_is_missed_while_away_comes_with_the_same_session_and_not_with_another(
    api: Api, kernel: str
) -> None:
    async with channels(api, kernel, "mine") as client:
        asked = await client.ask("x = input('go? ')\nfor n in range(300): print(n, flush=True)", allow_stdin=True)
        await client.until(lambda frame: frame.type == "input_request")
        await client.send("input_reply", {"value": ""}, "stdin")
    async with channels(api, kernel, "another") as another:
        # By now it has ended: nobody but the one who asked gets the reply.
        assert await another.printed("print('done')") == "done\n"
        async with channels(api, kernel, "mine") as client:
            frames = await client.answered(asked)
    assert text_of(frames) == "".join(f"{n}\n" for n in range(300))
    assert next(frame for frame in frames if frame.type == "execute_reply").content["status"] == "ok"


async def test_a_question_asked_while_the_client_was_away_is_asked_when_it_is_back(api: Api, kernel: str) -> None:
    async with channels(api, kernel, "mine") as client:
        asked = await client.ask("print('name', input('who? '))", allow_stdin=True)
    async with channels(api, kernel, "mine") as client:
        await client.until(lambda frame: frame.type == "input_request")
        await client.send("input_reply", {"value": "me"}, "stdin")
        assert text_of(await client.answered(asked)) == "name me\n"


async def test_the_same_session_connected_twice_closes_the_older_connection(api: Api, kernel: str) -> None:
    async with channels(api, kernel, "twin") as older, channels(api, kernel, "twin") as newer:
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await older.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert "anew" in closed.value.rcvd.reason
        assert await newer.printed("print('here')") == "here\n"
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["connections"] == 1


async def test_too_much_output_while_away_is_cut_and_says_so(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256, client_limit=100_000)) as api:
        kernel = await new_kernel(api)
        async with channels(api, kernel, "mine") as client:
            asked = await client.ask("input()\nfor n in range(1000): print('x' * 99, flush=True)", allow_stdin=True)
            await client.until(lambda frame: frame.type == "input_request")
            await client.send("input_reply", {"value": ""}, "stdin")
        async with channels(api, kernel, "another") as another:
            await another.printed("print('done')")
        async with channels(api, kernel, "mine") as client:
            frames = await client.answered(asked)
            text = text_of(frames)
            assert text.count("was not kept") == 1
            # With what is around each line, some 30 of them have room.
            assert 1000 < len(text) < 20_000
            assert await client.printed("print('more')") == "more\n"


async def test_restart_forgets_variables_keeps_files_and_the_connection(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client, channels(api, kernel) as other:
        await client.execute("kept = 1; open('kept.txt', 'w').write('here')")
        answer = await api.client.post(f"/api/kernels/{kernel}/restart", json={})
        assert answer.status_code == 200
        assert answer.json()["id"] == kernel
        assert answer.json()["execution_state"] == "idle"
        assert await client.printed("print('kept' in dir(), open('kept.txt').read())") == "False here\n"
        assert await other.printed("print(1)") == "1\n"


async def test_a_kernel_that_dies_is_restarted_and_clients_are_told(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        for _ in range(2):
            await client.ask("import os; os._exit(7)")
            frames = await client.until(
                lambda f: f.type == "status" and f.content["execution_state"] in {"restarting", "dead"}
            )
            assert frames[-1].content["execution_state"] == "restarting"
            assert frames[-1].parent == {}
            assert await client.printed("print('alive')") == "alive\n"


async def test_a_kernel_that_dies_again_and_again_stays_dead_until_it_is_restarted(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        for _ in range(5):
            await client.ask("import os; os._exit(7)")
            await client.until(lambda f: f.content.get("execution_state") == "restarting")
        await client.ask("import os; os._exit(7)")
        frames = await client.until(lambda f: f.content.get("execution_state") in {"restarting", "dead"})
        assert frames[-1].content["execution_state"] == "dead"
        assert (await api.client.get(f"/api/kernels/{kernel}")).json()["execution_state"] == "dead"
        assert (await api.client.post(f"/api/kernels/{kernel}/restart")).status_code == 200
        assert await client.printed("print('alive')") == "alive\n"


async def test_a_shutdown_message_ends_the_kernel_and_its_session(api: Api) -> None:
    kernel = await new_kernel(api)
    live = live_of(api, kernel)
    async with channels(api, kernel) as client:
        await client.send("shutdown_request", {"restart": False}, "control")
        async with asyncio.timeout(SECONDS):
            await live.ended.wait()
        answer = await api.client.get(f"/api/kernels/{kernel}")
        assert answer.status_code == 404
        assert "user" in answer.json()["message"]
        with pytest.raises(websockets.ConnectionClosed):
            await client.until(lambda _: False)


async def test_shutting_down_tells_why_closes_and_answers_404(api: Api) -> None:
    kernel = await new_kernel(api)
    async with channels(api, kernel) as client:
        assert (await api.client.delete(f"/api/kernels/{kernel}")).status_code == 204
        frame = await client.receive()
        assert (frame.type, frame.content["execution_state"]) == ("status", "dead")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "the kernel was shut down")
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with channels(api, kernel):
            pass
    assert refused.value.response.status_code == 404


MALFORMED = {
    "not json": "{",
    "not an object": "[1]",
    "no header": json.dumps({"channel": "shell", "content": {}}),
    "unknown channel": json.dumps({"channel": "iopub", "header": {"msg_id": "1", "msg_type": "x"}}),
    "channel of a wrong type": json.dumps({"channel": {"a": 1}, "header": {"msg_id": "1", "msg_type": "x"}}),
    "header of a wrong type": json.dumps({"channel": "shell", "header": ["msg_id"]}),
    "not a number": '{"channel": "shell", "header": {"msg_id": "1", "msg_type": "x"}, "content": {"a": NaN}}',
    "no offsets": b"",
    "too many offsets": b"\xff" * 8,
    "offsets past the end": b"\x00\x00\x00\x01\x00\x00\xff\xff{}",
    "binary that is no text": b"\x00\x00\x00\x01\x00\x00\x00\x08\xff\xfe",
}


@pytest.mark.parametrize("payload", MALFORMED.values(), ids=MALFORMED.keys())
@both
async def test_a_malformed_frame_closes_with_1007_and_the_kernel_lives_on(
    api: Api, shared_kernel: str, payload: str | bytes, v1: bool
) -> None:
    async with channels(api, shared_kernel, v1=v1) as client:
        await client.socket.send(payload)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.until(lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1007
        assert closed.value.rcvd.reason
    async with channels(api, shared_kernel, v1=v1) as client:
        assert await client.printed("print('alive')") == "alive\n"


@pytest.mark.parametrize("payload", ["[" * 100_000, "[" + "{}," * 150_000], ids=["too deep", "too many"])
async def test_a_message_with_too_much_in_it_closes_with_1009_and_the_kernel_lives_on(
    api: Api, shared_kernel: str, payload: str
) -> None:
    async with channels(api, shared_kernel) as client:
        await client.socket.send(payload)
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.until(lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert closed.value.rcvd.reason
    async with channels(api, shared_kernel) as client:
        assert await client.printed("print('alive')") == "alive\n"


async def test_a_message_that_is_too_big_closes_with_1009_and_the_kernel_lives_on(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256, message_limit=50_000)) as api:
        kernel = await new_kernel(api)
        async with channels(api, kernel) as client:
            await client.ask("#" * 60_000)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        async with channels(api, kernel) as client:
            assert await client.printed("print('alive')") == "alive\n"


async def test_a_key_is_wanted_by_header_or_query(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    home = own_home(settings, tmp_path / "home")
    async with serve(
        Settings(home=home, default_template="base", memory_reserve_mb=256, api_key=SecretStr(KEY))
    ) as api:
        kernel = await new_kernel(api)
        url = f"ws://127.0.0.1:{api.port}/api/kernels/{kernel}/channels"
        for given in ({"Authorization": f"token {KEY}"}, {"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
            async with websockets.connect(url, additional_headers=given, proxy=None) as socket:
                assert await Channels(socket, "x").printed("print(1)") == "1\n"
        async with websockets.connect(f"{url}?token={KEY}", proxy=None) as socket:
            assert await Channels(socket, "x").printed("print(2)") == "2\n"
        # Jupyter Server's gateway client without a token says "token ": nothing is no key.
        for wrong in ({}, {"Authorization": "token "}, {"Authorization": "token wrong"}, {"Authorization": "Basic x"}):
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with websockets.connect(url, additional_headers=wrong, proxy=None):
                    pass
            assert refused.value.response.status_code == 401
        # In a query it would be in the log of every proxy: only Jupyter's own routes take it there.
        async with asyncio.timeout(SECONDS):
            answer = await api.client.get("/v1/sessions", params={"token": KEY}, headers={"Authorization": ""})
        assert answer.status_code == 401
        for path in ("/api/kernels", "/api"):
            answer = await api.client.get(path, params={"token": KEY}, headers={"Authorization": ""})
            assert answer.status_code == 200


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", "http://[", "x"])
async def test_a_web_page_of_another_origin_is_kept_out(api: Api, shared_kernel: str, origin: str) -> None:
    url = f"ws://127.0.0.1:{api.port}/api/kernels/{shared_kernel}/channels"
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(url, origin=websockets.Origin(origin), proxy=None):
            pass
    assert refused.value.response.status_code == 403
    async with websockets.connect(url, origin=websockets.Origin(f"http://127.0.0.1:{api.port}"), proxy=None):
        pass


async def test_jupyter_servers_gateway_client_gets_no_binary_frame_that_would_end_its_notebook(
    api: Api, kernel: str
) -> None:
    url = f"ws://127.0.0.1:{api.port}/api/kernels/{kernel}/channels"
    async with websockets.connect(url, user_agent_header="Tornado/6.6", proxy=None) as socket:
        client = Channels(socket, "lab")
        code = "from comm import create_comm; create_comm('t', data={'n': 1}, buffers=[bytes([0x85])]); print('more')"
        frames = await client.execute(code)
        opened = next(frame for frame in frames if frame.type == "comm_open")
        assert (opened.content["data"], opened.buffers) == ({"n": 1}, [])
        assert text_of(frames) == "more\n"


async def test_a_binary_message_that_jupyter_servers_gateway_client_sends_as_text_is_taken(
    api: Api, kernel: str
) -> None:
    code = """
def opened(comm, message):
    comm.on_msg(lambda message: print(*(bytes(b).hex() for b in message["buffers"]), flush=True))
get_ipython().kernel.comm_manager.register_target("told", opened)
"""
    async with channels(api, kernel) as client:
        await client.execute(code)
        comm = uuid.uuid4().hex
        await client.open_comm(comm, "told")
        for buffer in (b"\xff\xfe\x00", b"ascii"):
            header = {"msg_id": uuid.uuid4().hex, "msg_type": "comm_msg", "session": "lab", "version": "5.4"}
            frame = client.packed("shell", header, {"comm_id": comm, "data": {}}, [buffer])
            assert isinstance(frame, bytes)
            await client.socket.send(frame, text=True)
            frames = await client.until(lambda f: f.type == "stream")
            assert frames[-1].content["text"] == f"{buffer.hex()}\n"


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end_of_its_session(api: Api) -> None:
    kernel = await new_kernel(api)
    async with channels(api, kernel, "slow") as slow:
        slow.socket.transport.pause_reading()
        async with channels(api, kernel, "other") as other:
            await slow.ask("data = 'x' * 1_000_000\nfor n in range(50): print(data)")
            await other.until(lambda frame: frame.type == "stream")
            # Less than the client would be given to take something.
            async with asyncio.timeout(15):
                assert (await api.client.delete(f"/api/kernels/{kernel}")).status_code == 204
            slow.socket.transport.abort()


async def test_the_debugger_stops_at_a_breakpoint(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:

        async def debug(command: str, **arguments: object) -> dict[str, Any]:
            request = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
            asked = await client.send("debug_request", request, "control")
            frames = await client.until(lambda f: f.type == "debug_reply" and f.parent["msg_id"] == asked)
            return frames[-1].content

        code = "def f(n):\n    return n + 1\n\nf(41)"
        assert (await debug("initialize", clientID="tests", adapterID=""))["success"]
        assert (await debug("attach"))["success"]
        file = (await debug("dumpCell", code=code))["body"]["sourcePath"]
        set_to = await debug("setBreakpoints", source={"path": file}, breakpoints=[{"line": 2}], sourceModified=False)
        assert set_to["body"]["breakpoints"][0]["verified"]
        assert (await debug("configurationDone"))["success"]
        asked = await client.ask(code)
        stopped = await client.until(lambda f: f.type == "debug_event" and f.content["event"] == "stopped")
        thread = stopped[-1].content["body"]["threadId"]
        trace = await debug("stackTrace", threadId=thread)
        assert trace["body"]["stackFrames"][0]["name"] == "f"
        assert (await debug("continue", threadId=thread))["success"]
        frames = await client.answered(asked)
        assert next(f for f in frames if f.type == "execute_result").content["data"]["text/plain"] == "42"


async def test_a_subshell_answers_while_the_kernel_is_busy(api: Api, kernel: str) -> None:
    async with channels(api, kernel) as client:
        made = await client.answered(await client.send("create_subshell_request", {}, "control"))
        subshell = next(frame for frame in made if frame.channel == "control").content["subshell_id"]
        asked = await client.ask("input()", allow_stdin=True)
        await client.until(lambda frame: frame.type == "input_request")
        content = {"code": "print('beside')", "silent": False, "store_history": False, "user_expressions": {}}
        beside = await client.send("execute_request", {**content, "allow_stdin": False}, subshell_id=subshell)
        assert text_of(await client.answered(beside)) == "beside\n"
        await client.send("input_reply", {"value": ""}, "stdin")
        await client.answered(asked)
