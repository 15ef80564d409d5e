"""The clients against the real service: sessions, code, input, commands, files, errors; with asyncio and without."""

import asyncio
import contextlib
import hashlib
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from served import SECONDS, Api

from interpreter.client import AsyncClient, AsyncSession, Client, Event
from interpreter.errors import (
    Conflict,
    FileExists,
    FileNotFound,
    FolderNotEmpty,
    InvalidRequest,
    NotFound,
    TemplateNotFound,
    TooLarge,
)

pytestmark = pytest.mark.machine


@pytest.fixture
async def client(api: Api) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as client:
        yield client


@pytest.fixture
async def session(client: AsyncClient, shared: str) -> AsyncSession:
    return client.session(shared)


async def test_a_session_is_started_and_stopped_when_left(client: AsyncClient) -> None:
    async with await client.create_session(
        name="ours", timeout_seconds=60, env={"A": "b"}, metadata={"k": 1}
    ) as session:
        info = await session.info()
        assert (info.state, info.name, info.timeout_seconds, info.env, info.metadata) == (
            "running",
            "ours",
            60,
            ["A"],
            {"k": 1},
        )
        assert (await session.set_timeout(120)).timeout_seconds == 120
        assert (await session.execute("import os\nos.environ['A']")).text == "'b'"
        running = [one.id async for one in client.list_sessions(state="running")]
        assert session.id in running
    info = await session.info()
    assert (info.state, info.reason) == ("stopped", "user")
    with pytest.raises(Conflict):
        await session.execute("1")


async def test_leaving_with_an_error_stops_the_session_and_keeps_the_error(client: AsyncClient) -> None:
    session = await client.create_session()
    with pytest.raises(LookupError):
        async with session:
            raise LookupError
    assert (await session.info()).state == "stopped"


async def test_results(session: AsyncSession) -> None:
    result = await session.execute("import sys\nprint('a')\nprint('b')\nprint('c', file=sys.stderr)\n6 * 7")
    assert (result.status, result.stdout, result.stderr, result.text) == ("ok", "a\nb\n", "c\n", "42")
    assert result.execution_id
    result = await session.execute("1 / 0")
    assert (result.status, (result.error or {})["ename"], result.text) == ("error", "ZeroDivisionError", None)
    result = await session.execute("while True: pass", timeout=0.5)
    assert (result.status, (result.error or {})["code"]) == ("timeout", "execution_timeout")


async def test_input_is_answered_while_the_code_runs(session: AsyncSession) -> None:
    asked: list[tuple[str, bool]] = []

    async def answer(prompt: str, password: bool) -> str:
        asked.append((prompt, password))
        return "Ada"

    code = "import getpass\nprint(input('name? '), getpass.getpass('key? '))"
    async with asyncio.timeout(SECONDS):
        events = [event async for event in session.stream(code, on_input=answer)]
    assert asked == [("name? ", False), ("key? ", True)]
    assert "".join(event["text"] for event in events if event["type"] == "stream") == "Ada Ada\n"


async def test_code_that_waits_for_an_answer_can_be_interrupted(session: AsyncSession) -> None:
    async def never(prompt: str, password: bool) -> str:
        await session.interrupt()
        await asyncio.sleep(SECONDS)
        return ""

    async with asyncio.timeout(SECONDS / 2):
        events = [event async for event in session.stream("input()", on_input=never)]
    assert events[-1]["error"]["ename"] == "KeyboardInterrupt"


async def test_leaving_a_stream_interrupts_the_code(session: AsyncSession) -> None:
    async with asyncio.timeout(SECONDS):
        async with contextlib.aclosing(session.stream("print(1, flush=True)\nwhile True: pass")) as events:
            async for event in events:
                if event["type"] == "stream":
                    break
        assert (await session.execute("2")).text == "2"


async def test_detached_code_and_contexts(session: AsyncSession) -> None:
    await session.open_context("second")
    assert await session.contexts() == ["main", "second"]
    execution = await session.execute_detached("here = 5\nhere", context_id="second")
    info = await session.execution(execution, wait=SECONDS)
    assert info.state == "done"
    assert info.result is not None
    assert info.result.text == "5"
    await session.restart("second")
    assert (await session.execute("'here' in globals()", context_id="second")).text == "False"
    await session.close_context("second")
    assert await session.contexts() == ["main"]


async def test_commands(session: AsyncSession) -> None:
    result = await session.run("echo $A; pwd; echo c >&2; exit 3", cwd="/tmp", env={"A": "b"})
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("error", 3, "b\n/tmp\n", "c\n")
    assert (await session.run("sleep 60", timeout=0.5)).status == "timeout"
    command = await session.start_command("echo x; sleep 60")
    assert (await session.command(command)).state == "running"
    await session.stop_command(command)
    assert (await session.command(command, wait=SECONDS)).state == "done"
    events = [event async for event in session.stream_command("echo x")]
    assert [event["type"] for event in events] == ["started", "stream", "done"]


async def test_five_megabytes_go_up_and_down_with_progress(session: AsyncSession, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(5_000_000))
    up: list[tuple[int, int | None]] = []
    down: list[tuple[int, int | None]] = []
    size = await session.upload(source, "client/big.bin", progress=lambda *at: up.append(at))
    assert await session.download("client/big.bin", target, progress=lambda *at: down.append(at)) == b""
    assert size == 5_000_000
    assert target.read_bytes() == source.read_bytes()
    assert list(tmp_path.glob("*.part")) == []
    for told in (up, down):
        assert told[0] == (0, 5_000_000)
        assert told[-1] == (5_000_000, 5_000_000)
        assert told == sorted(told)
        assert len(told) > 5


async def test_bytes_and_iterators_go_up(session: AsyncSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(10):
            yield bytes([number]) * 1000

    told: list[tuple[int, int | None]] = []
    assert await session.upload(pieces(), "client/pieces", progress=lambda *at: told.append(at)) == 10_000
    assert told[-1] == (10_000, None)
    digest = hashlib.sha256(await session.download("client/pieces")).hexdigest()
    assert (await session.run("sha256sum client/pieces")).stdout.startswith(digest)
    assert await session.upload(b"", "client/empty") == 0
    assert await session.download("client/empty") == b""
    with pytest.raises(FileExists):
        await session.upload(b"x", "client/empty", overwrite=False)


async def test_a_download_that_fails_leaves_nothing(session: AsyncSession, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("before")
    with pytest.raises(FileNotFound):
        await session.download("client/nothing", target)
    await session.upload(b"x" * 3_000_000, "client/three")

    def stop(done: int, total: int | None) -> None:
        if done > 1_000_000:
            raise LookupError

    with pytest.raises(LookupError):
        await session.download("client/three", target, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_text() == "before"


async def test_folders(session: AsyncSession, tmp_path: Path) -> None:
    assert (await session.make_folder("client/folder/sub")).type == "folder"
    await session.upload("grün\n".encode(), "client/folder/ä ö.txt")
    await session.upload(b"", "client/folder/.hidden")
    assert [entry.name async for entry in session.list_files("client/folder")] == [".hidden", "sub", "ä ö.txt"]
    assert [entry.name async for entry in session.list_files("client/folder", hidden=False)] == ["sub", "ä ö.txt"]
    assert await session.read_text("client/folder/ä ö.txt") == "grün\n"
    assert await session.read_text("client/folder/ä ö.txt", limit=2) == "gr"
    moved = await session.move("client/folder/ä ö.txt", "client/folder/sub/b.txt")
    assert (moved.name, moved.size, (await session.describe("client/folder/sub/b.txt")).mime) == (
        "b.txt",
        6,
        "text/plain",
    )
    await session.archive("client/folder", tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        assert {name.removeprefix("./") for name in archive.getnames()} >= {"folder/.hidden", "folder/sub/b.txt"}
    with pytest.raises(FolderNotEmpty):
        await session.remove("client/folder")
    await session.remove("client/folder", recursive=True)
    with pytest.raises(FileNotFound):
        await session.describe("client/folder")


async def test_errors_are_the_packages_own(client: AsyncClient, session: AsyncSession, api: Api) -> None:
    with pytest.raises(NotFound):
        await client.session("nothing").info()
    with pytest.raises(NotFound):
        await session.execute("1", context_id="nothing")
    with pytest.raises(TemplateNotFound):
        await client.create_session("nothing")
    with pytest.raises(InvalidRequest, match="timeout_seconds"):
        await client.create_session(timeout_seconds=0)
    with pytest.raises(Conflict):
        await session.answer_input("nobody asked")
    with pytest.raises(TooLarge):
        await session.upload(bytes(api.service.settings.upload_limit + 1), "client/too-large")


async def test_templates_and_usage(client: AsyncClient, session: AsyncSession) -> None:
    assert "base" in [template.name for template in await client.templates() if template.built]
    # The ledger is written once a second.
    async with asyncio.timeout(SECONDS):
        while True:
            used = await session.usage()
            if used.cpu_seconds:
                break
            await asyncio.sleep(0.5)
    assert used.session_id == session.id
    assert used.series
    groups = {group.group: group for group in await client.usage(group_by="template")}
    assert groups["base"].sessions > 0
    assert await client.usage(datetime(2001, 1, 1, tzinfo=UTC), datetime(2001, 1, 2, tzinfo=UTC)) == []


async def test_without_asyncio(api: Api, tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"a" * 1000, b"b" * 1000)

    def work() -> str:
        with Client(f"http://127.0.0.1:{api.port}") as client:
            with client.create_session(name="sync") as session:
                assert session.info().name == "sync"
                assert session.execute("print(1)\n2").stdout == "1\n"
                events: list[Event] = list(session.stream("print(input('name? '))", on_input=lambda *_: "Ada"))
                assert [event["type"] for event in events][:2] == ["started", "input_request"]
                assert "".join(event["text"] for event in events if event["type"] == "stream") == "Ada\n"
                for event in session.stream("print(1, flush=True)\nwhile True: pass"):
                    if event["type"] == "stream":
                        break
                assert session.execute("3").text == "3"
                told: list[tuple[int, int | None]] = []
                (tmp_path / "up").write_bytes(os.urandom(5_000_000))
                session.upload(tmp_path / "up", "up", progress=lambda *at: told.append(at))
                session.download("up", tmp_path / "down")
                assert told[-1] == (5_000_000, 5_000_000)
                assert (tmp_path / "down").read_bytes() == (tmp_path / "up").read_bytes()
                assert session.upload(pieces(), "pieces") == 2000
                assert [entry.name for entry in session.list_files(hidden=False)] == ["pieces", "up"]
                assert session.run("exit 4").exit_code == 4
                with pytest.raises(FileNotFound):
                    session.read_text("nothing")
                assert session.id in [info.id for info in client.list_sessions(state="running", limit=500)]
            assert client.session(session.id).info().state == "stopped"
        with pytest.raises(RuntimeError, match="closed"):
            client.templates()
        return session.id

    async with asyncio.timeout(2 * SECONDS):
        assert await asyncio.to_thread(work)
