"""What a model is told when Python or the sandbox ends, of displays and images, and of commands in the background."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_service import serve_with_mcp
from mcp_types import CallToolResult
from served import SECONDS, Api, own_home, serve

from interpreter import Settings
from interpreter.mcp.images import MAX_ENCODED, picture_of
from interpreter.mcp.sandbox import REPLACED

pytestmark = pytest.mark.machine

PNG = """
import struct, zlib
def png(width, height, rows):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")
    return b"\\x89PNG\\r\\n\\x1a\\n" + b"".join(parts)
"""


def text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def call(client: Client, tool: str, **arguments: Any) -> CallToolResult:
    return await client.call_tool(tool, arguments)


async def run(client: Client, code: str) -> str:
    result = await call(client, "execute_code", code=code)
    assert not result.is_error, result
    return text(result)


@pytest.fixture(scope="module")
async def http(api: Api) -> AsyncGenerator[Callable[[], Client]]:
    async with serve_with_mcp(api.service) as url:
        yield lambda: Client(f"{url}/mcp", read_timeout_seconds=SECONDS)


async def settled() -> None:
    """Let every task that is due run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def sandbox_of(api: Api, before: set[str]) -> str:
    """The session that was started since."""
    answer = await api.client.get("/v1/sessions", params={"state": "running", "limit": 500})
    (session_id,) = {one["id"] for one in answer.json()["sessions"] if one["name"] == "mcp"} - before
    return session_id


async def test_python_that_died_is_started_again_and_the_cause_is_told(http) -> None:
    async with http() as client:
        await run(client, "x = 1; open('kept.txt', 'w').write('kept')")
        died = await call(client, "execute_code", code="import os\nprint('before', flush=True)\nos._exit(3)")
        assert died.is_error
        assert text(died).startswith("before\nPython ended while the code ran: exit status 3. It was started again")
        assert "memory" not in text(died)
        assert "NameError" in await run(client, "x")
        assert await run(client, "open('kept.txt').read()") == "'kept'"


async def test_python_that_died_between_two_calls_is_started_again(http) -> None:
    async with http() as client:
        kernel = await run(client, "import os; print(os.getpid())")
        await call(client, "run_command", command=f"kill -9 {kernel}; while kill -0 {kernel} 2>&-; do sleep 0.1; done")
        died = await call(client, "execute_code", code="1 + 1")
        assert died.is_error
        assert "killed by signal 9" in text(died)
        assert await run(client, "1 + 1") == "2"


async def test_a_sandbox_that_ended_under_the_code_is_told_as_such(api: Api, http) -> None:
    answer = await api.client.get("/v1/sessions", params={"state": "running", "limit": 500})
    before = {one["id"] for one in answer.json()["sessions"]}
    async with http() as client:
        await run(client, "x = 1")
        session_id = await sandbox_of(api, before)
        live = api.service.sessions.live_session(session_id)
        assert live is not None
        code = asyncio.create_task(call(client, "execute_code", code="while True: pass"))
        command = asyncio.create_task(call(client, "run_command", command="sleep 1000"))
        async with asyncio.timeout(SECONDS):
            while not (live.executions.busy and live.commands.busy):
                await settled()
        await api.client.delete(f"/v1/sessions/{session_id}")
        for ended, what in ((await code, "the code"), (await command, "the command")):
            assert ended.is_error
            assert f"The sandbox ended while {what} ran: the session was stopped. Variables and files are gone" in text(
                ended
            )
        again = await call(client, "execute_code", code="x")
        assert text(again).endswith(REPLACED)


async def test_displays_are_shown_as_they_are_in_the_end_and_objects_as_text(http) -> None:
    async with http() as client:
        code = (
            "from IPython.display import *\nbar = display('0 %', display_id=True)\nprint('between')\n"
            "for n in (50, 100): bar.update(f'{n} %')"
        )
        assert await run(client, code) == "'100 %'\nbetween"
        assert await run(client, "display(Markdown('# T'), HTML('<b>x</b>'), JSON({'a': [1]}), SVG('<svg/>'))") == (
            '# T\n<b>x</b>\n{"a": [1]}\n<svg/>'
        )
        assert await run(client, "print('5 %\\b\\b\\b10 %', end='')\nprint('\\r\\x1b[Kdone')") == "done"


async def test_an_image_that_is_more_than_clients_take_is_told_with_its_size(http) -> None:
    async with http() as client:
        code = f"{PNG}\nfrom IPython.display import Image, display\ndisplay(Image(png(3000, 2, bytes(2 * 9001))))"
        result = await call(client, "execute_code", code=code)
        assert not result.is_error
        assert [block.type for block in result.content] == ["text"]
        assert "An image of 3000 x 2 pixels" in text(result)
        assert "Pillow" in text(result)
        assert await run(client, "import os; [name for name in os.listdir('/tmp') if len(name) == 32]") == "[]"
        broken = "display({'image/png': 'bm8gaW1hZ2U=', 'text/plain': 'x'}, raw=True)"
        assert "is no image that can be read" in await run(client, broken)


async def test_large_images_are_made_smaller_in_the_sandbox(
    api: Api, settings: Settings, data_template: str, tmp_path: Path
) -> None:
    home = own_home(settings, tmp_path / "home")
    own = Settings(home=home, default_template=data_template, memory_reserve_mb=256)
    noise = f"{PNG}\nimport os\nnoise = png(2400, 1000, b''.join(b'\\0' + os.urandom(7200) for _ in range(1000)))"
    async with (
        serve(own) as data_api,
        serve_with_mcp(data_api.service) as url,
        Client(f"{url}/mcp", read_timeout_seconds=120) as client,
    ):
        # What lies in the session's folder is not what it is made smaller with.
        await run(client, f"{noise}\nopen('noise.png', 'wb').write(noise)\nopen('base64.py', 'w').write('1/0')")
        shown = await call(
            client, "execute_code", code="from IPython.display import Image, display\ndisplay(Image(noise))"
        )
        found = await call(client, "download_file", path="noise.png")
        assert "An image of 2400 x 1000 pixels" in text(shown)
        for result in (shown, found):
            (image,) = [block for block in result.content if block.type == "image"]
            picture = picture_of(base64.b64decode(image.data))
            assert picture is not None
            assert picture.mime_type == image.mime_type
            assert len(image.data) <= MAX_ENCODED
            assert picture.is_shown
            assert "was made smaller to be shown: 1568 x 653 pixels" in text(result)
        plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
        small = await call(client, "execute_code", code=plot)
        assert [block.type for block in small.content] == ["image"]
        # Nothing is left of what was handed over.
        assert (await run(client, "import os; [name for name in os.listdir('/tmp') if len(name) == 32]")) == "[]"


async def test_a_command_in_the_background_is_read_and_ended(http) -> None:
    async with http() as client:
        started = await call(client, "run_command", command="echo one; sleep 1000", background=True)
        command_id = text(started).rpartition(" ")[2]
        first = await call(client, "command_output", command_id=command_id, wait_seconds=30)
        assert text(first) == "one\n[it runs on]"
        assert text(await call(client, "command_output", command_id=command_id)) == "[it runs on]"
        await call(client, "stop_command", command_id=command_id)
        assert text(await call(client, "command_output", command_id=command_id)) == "[it was ended]"
        done = await call(client, "run_command", command="echo out; echo err >&2; exit 7", background=True)
        command_id = text(done).rpartition(" ")[2]
        seen = ""
        async with asyncio.timeout(SECONDS):
            while "exit code 7" not in seen:
                seen += text(await call(client, "command_output", command_id=command_id, wait_seconds=30)) + "\n"
        assert "out\n" in seen
        assert "[stderr]\nerr\n" in seen
        unknown = await call(client, "command_output", command_id="nothing")
        assert unknown.is_error
        assert "there is no command" in text(unknown)
