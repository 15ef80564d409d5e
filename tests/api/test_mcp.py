"""The tools for language models, used with the mcp package's own client over stdio and over HTTP."""

import asyncio
import base64
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_service import serve_with_mcp
from mcp_types import CallToolResult
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import SecretStr
from served import SECONDS, Api, own_home

from interpreter import Settings
from interpreter.mcp.sandbox import REPLACED
from interpreter.mcp.text import LIMIT

pytestmark = pytest.mark.machine

TOOLS = {
    "execute_code",
    "run_command",
    "command_output",
    "stop_command",
    "upload_file",
    "download_file",
    "list_files",
    "restart",
}
PROGRAM = str(Path(sys.executable).with_name("interpreter"))
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
KEY = "k" * 40


def text(result: CallToolResult) -> str:
    """All text of an answer."""
    return "\n".join(block.text for block in result.content if block.type == "text")


async def run(client: Client, code: str, **more: Any) -> str:
    """The text that code comes to; it was run to its end."""
    result = await client.call_tool("execute_code", {"code": code, **more})
    assert not result.is_error, result
    return text(result)


async def running(api: Api) -> set[str]:
    """The sessions that run for MCP clients."""
    answer = await api.client.get("/v1/sessions", params={"state": "running", "limit": 500})
    return {session["id"] for session in answer.json()["sessions"] if session["name"] == "mcp"}


async def none_left(api: Api, sessions: set[str]) -> bool:
    """Whether all of these sessions are stopped soon."""
    deadline = time.monotonic() + SECONDS
    while left := sessions & await running(api):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.1 * bool(left))
    return True


def program(**variables: str) -> StdioServerParameters:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return StdioServerParameters(command=PROGRAM, args=["mcp"], env={**kept, **variables})


@pytest.fixture(scope="session")
async def mcp_url(api: Api) -> AsyncGenerator[str]:
    async with serve_with_mcp(api.service) as url:
        yield url


@pytest.fixture(params=["stdio", "http"])
def connect(request: pytest.FixtureRequest, api: Api, mcp_url: str, tmp_path: Path) -> Any:
    """What makes a client, over each transport."""
    if request.param == "http":
        return lambda: Client(f"{mcp_url}/mcp", read_timeout_seconds=SECONDS)

    @asynccontextmanager
    async def over_stdio() -> AsyncGenerator[Client]:
        variables = {"INTERPRETER_URL": f"http://127.0.0.1:{api.port}", "INTERPRETER_HOME": str(tmp_path / "unused")}
        with (tmp_path / "stderr").open("w") as log:
            async with Client(stdio_client(program(**variables), errlog=log), read_timeout_seconds=SECONDS) as client:
                yield client

    return over_stdio


@pytest.fixture
def http(mcp_url: str) -> Any:
    """What makes a client over HTTP: for what is the same over each transport."""
    return lambda: Client(f"{mcp_url}/mcp", read_timeout_seconds=SECONDS)


async def test_the_tools_are_listed_with_what_a_model_needs(connect):
    async with connect() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == TOOLS
        for tool in tools.values():
            assert len(tool.description) > 60
            assert tool.annotations.open_world_hint is False
            assert "ctx" not in tool.input_schema["properties"]
        assert tools["list_files"].annotations.read_only_hint
        assert not tools["execute_code"].annotations.read_only_hint
        assert tools["execute_code"].input_schema["required"] == ["code"]
        assert "without network" in tools["execute_code"].description
        assert "sandbox" in client.instructions.lower()


async def test_a_client_keeps_its_state_has_its_own_session_and_leaves_nothing(api, connect):
    before = await running(api)
    async with connect() as one, connect() as two:
        assert await running(api) == before
        assert await run(one, "x = 20\nprint('set')") == "set"
        assert await run(one, "print(x)\nx + 22") == "20\n42"
        assert "NameError: name 'x' is not defined" in await run(two, "x")
        mine = await running(api) - before
        assert len(mine) == 2
    assert await none_left(api, mine)


async def test_an_exception_is_an_answer_that_ends_with_its_message(http):
    async with http() as client:
        answer = await run(client, "print('before')\ndef divide(a):\n    return a / 0\n\ndivide(1)")
        assert answer.startswith("before\n")
        assert "divide(1)" in answer
        assert "return a / 0" in answer
        assert answer.endswith("ZeroDivisionError: division by zero")
        assert "\x1b" not in answer
        assert "SyntaxError" in await run(client, "x = = 1")
        assert await run(client, "pass") == "The code ran to its end and printed nothing."


async def test_calls_at_once_share_one_session(api, http):
    before = await running(api)
    async with http() as client:
        answers = await asyncio.gather(*(run(client, f"print({number})") for number in range(4)))
        assert answers == ["0", "1", "2", "3"]
        assert len(await running(api) - before) == 1


async def test_an_image_comes_as_an_image(http):
    code = f"from IPython.display import Image, display\ndisplay(Image({PIXEL!r}))\nprint('drawn')"
    async with http() as client:
        result = await client.call_tool("execute_code", {"code": code})
        assert [block.type for block in result.content] == ["text", "image"]
        assert result.content[1].mime_type == "image/png"
        assert base64.b64decode(result.content[1].data) == PIXEL
        await run(client, f"open('pixel.png', 'wb').write({PIXEL!r})")
        (image,) = (await client.call_tool("download_file", {"path": "pixel.png"})).content
        assert (image.type, base64.b64decode(image.data)) == ("image", PIXEL)


async def test_files_go_up_and_come_down(http):
    async with http() as client:
        wrote = await client.call_tool("upload_file", {"path": "data/ä.csv", "content": "a,b\n1,ü\n"})
        assert text(wrote) == "Wrote 9 bytes to /home/user/data/ä.csv."
        assert await run(client, "print(open('data/ä.csv').read())") == "a,b\n1,ü"
        assert text(await client.call_tool("download_file", {"path": "data/ä.csv"})) == "a,b\n1,ü\n"
        data = bytes(range(256))
        content = {"path": "data/all.bin", "content": base64.b64encode(data).decode(), "encoding": "base64"}
        assert not (await client.call_tool("upload_file", content)).is_error
        (block,) = (await client.call_tool("download_file", {"path": "/home/user/data/all.bin"})).content
        assert base64.b64decode(block.resource.blob) == data
        assert block.resource.uri == "file:///home/user/data/all.bin"
        listed = text(await client.call_tool("list_files", {"path": "data"}))
        assert listed.startswith("/home/user/data:\n")
        assert any(line.split() == ["file", "256", "all.bin"] for line in listed.splitlines())
        assert "data" in text(await client.call_tool("list_files"))
        shown = text(await client.call_tool("run_command", {"command": "wc -c < data/all.bin; ls nothing"}))
        assert shown.startswith("256\n[stderr]\n")
        assert shown.endswith("[exit code 2]")


async def test_a_name_that_is_not_utf8_is_asked_for_as_it_is_listed(http):
    async with http() as client:
        await run(client, "import os; os.mkdir(b'raw\\xff'); open(b'raw\\xff/caf\\xe9.txt', 'w').write('latin')")
        assert "raw\\xff" in text(await client.call_tool("list_files"))
        listed = text(await client.call_tool("list_files", {"path": "raw\\xff"}))
        assert listed.splitlines()[1].split()[-1] == "caf\\xe9.txt"
        assert text(await client.call_tool("download_file", {"path": "raw\\xff/caf\\xe9.txt"})) == "latin"
        # What is called so itself goes before.
        await run(client, "open('a\\\\xe9', 'w').write('text'); open(b'a\\xe9', 'w').write('bytes')")
        assert text(await client.call_tool("download_file", {"path": "a\\xe9"})) == "text"


async def test_what_a_tool_cannot_do_is_an_error_that_says_what_to_do(http):
    async with http() as client:
        missing = await client.call_tool("download_file", {"path": "missing.txt"})
        assert missing.is_error
        assert text(missing).startswith("missing.txt")
        no_base64 = {"path": "a", "content": "no base64!", "encoding": "base64"}
        refused = await client.call_tool("upload_file", no_base64)
        assert refused.is_error
        assert "base64" in text(refused)
        await run(client, "open('large.bin', 'wb').truncate(5_000_001)")
        large = await client.call_tool("download_file", {"path": "large.bin"})
        assert large.is_error
        assert "execute_code" in text(large)
        late = await client.call_tool("execute_code", {"code": "import time; time.sleep(60)", "timeout_seconds": 1})
        assert late.is_error
        assert "interrupted after 1 s" in text(late)
        await run(client, "import os; os.symlink('large.bin', 'link.bin')")
        assert (await client.call_tool("download_file", {"path": "link.bin"})).is_error
        for result in (missing, refused, large, late):
            assert "/site-packages/" not in text(result)


async def test_long_output_is_cut_in_its_middle(http):
    async with http() as client:
        answer = await run(client, "print('start'); print('x' * 1_000_000); print('end')")
        assert len(answer) <= LIMIT
        assert answer.startswith("start\n")
        assert answer.endswith("x\nend")
        assert "characters left out" in answer


async def test_code_that_nobody_waits_for_any_more_is_interrupted(http):
    async with http() as client:
        await run(client, "import time")
        with pytest.raises(MCPError, match="timed out"):
            await client.call_tool("execute_code", {"code": "time.sleep(300)"}, read_timeout_seconds=5)
        assert await run(client, "print('free')") == "free"


async def test_a_restart_loses_variables_and_keeps_files(http):
    async with http() as client:
        await run(client, "x = 1; open('kept.txt', 'w').write('kept')")
        assert "variables and imports are gone" in text(await client.call_tool("restart"))
        assert "NameError" in await run(client, "x")
        assert await run(client, "print(open('kept.txt').read())") == "kept"


async def test_a_session_that_is_over_is_replaced_and_the_model_is_told(api, connect):
    before = await running(api)
    async with connect() as client:
        await run(client, "x = 1")
        (first,) = await running(api) - before
        await api.client.delete(f"/v1/sessions/{first}")
        answer = await run(client, "print('again')")
        assert answer == f"again\n{REPLACED}"
        assert REPLACED not in await run(client, "print('again')")
        (second,) = await running(api) - before
        await api.client.delete(f"/v1/sessions/{second}")
        missing = await client.call_tool("download_file", {"path": "kept.txt"})
        assert missing.is_error
        assert text(missing).startswith(REPLACED)


async def test_over_http_clients_speak_a_version_that_has_sessions(mcp_url, http):
    async with http() as client:
        assert client.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS
    async with Client(f"{mcp_url}/mcp", mode="2026-07-28") as client:
        with pytest.raises(Exception, match="keeps a sandbox for each MCP session"):
            await client.call_tool("execute_code", {"code": "1"})


async def test_the_key_is_asked_for_and_passed_on(api):
    service = replace(api.service, settings=api.service.settings.model_copy(update={"api_key": SecretStr(KEY)}))
    async with serve_with_mcp(service) as url:
        async with httpx2.AsyncClient() as plain:
            assert (await plain.post(f"{url}/mcp", json={})).status_code == 401
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}):
            async with (
                httpx2.AsyncClient(headers=headers, timeout=SECONDS) as keyed,
                Client(streamable_http_client(f"{url}/mcp", http_client=keyed)) as client,
            ):
                assert await run(client, "6 * 7") == "42"


async def test_without_a_service_the_program_runs_one_of_its_own(engine, settings: Settings, tmp_path: Path):
    home = own_home(settings, tmp_path / "home")
    parameters = program(
        INTERPRETER_HOME=str(home), INTERPRETER_DEFAULT_TEMPLATE="base", INTERPRETER_MEMORY_RESERVE_MB="256"
    )
    with (tmp_path / "stderr").open("w") as log:
        async with Client(stdio_client(parameters, errlog=log), read_timeout_seconds=SECONDS) as client:
            assert await run(client, "x = 6; x * 7") == "42"
            assert await run(client, "import os; os.system('echo loud'); x") == "loud\n6"
    assert not list((home / "machines").iterdir())
    assert "Traceback" not in (tmp_path / "stderr").read_text()


async def test_a_signal_ends_the_program_and_its_session(api, tmp_path):
    before = await running(api)
    environment = {**os.environ, "INTERPRETER_URL": f"http://127.0.0.1:{api.port}"}
    process = await asyncio.create_subprocess_exec(
        *(PROGRAM, "mcp"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    for line in (
        f'{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{about}}}'.replace("'", '"'),
        '{"jsonrpc":"2.0","method":"notifications/initialized"}',
        '{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"execute_code","arguments":{"code":"1+1"}}}',
    ):
        process.stdin.write(line.encode() + b"\n")
    assert b'"id":1' in await process.stdout.readline()
    assert b'"text":"2"' in await process.stdout.readline()
    mine = await running(api) - before
    assert len(mine) == 1
    process.send_signal(signal.SIGTERM)
    rest, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert rest == b""
    assert await none_left(api, mine)
