"""One session as its owner uses it: code, outputs of every type, errors, time limits, input, restart, files."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from interpreter import (
    ClearOutput,
    DisplayData,
    Engine,
    Error,
    ExecuteResult,
    ExecutionTimeout,
    KernelDied,
    Session,
    Stream,
    TemplateNotFound,
    TransferError,
    UpdateDisplayData,
)

pytestmark = pytest.mark.machine


async def test_the_last_expression_comes_back_as_a_mime_bundle(session: Session) -> None:
    result = await session.execute("1 + 1")
    assert (result.status, result.text, result.execution_count) == ("ok", "2", 1)
    assert result.data == {"text/plain": "2"}


async def test_outputs_of_every_type_arrive_in_order(session: Session) -> None:
    code = """
import sys
from IPython.display import HTML, clear_output, display
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
handle = display(HTML("<b>x</b>"), display_id="d")
handle.update(HTML("<b>y</b>"))
clear_output()
40 + 2
"""
    outputs = [output async for output in session.execute(code)]
    assert [type(output) for output in outputs] == [
        *(Stream, Stream, DisplayData, UpdateDisplayData, ClearOutput, ExecuteResult),
    ]
    display = outputs[2]
    assert isinstance(display, DisplayData)
    assert display.data["text/html"] == "<b>x</b>"
    assert display.transient == {"display_id": "d"}


async def test_outputs_arrive_while_the_code_still_runs(session: Session) -> None:
    # The code ends only when its input is answered, and that happens after its first output was seen.
    seen = asyncio.Event()

    async def answer(prompt: str, password: bool) -> str:
        await seen.wait()
        return f"{prompt}{password}"

    texts: list[str] = []
    async for output in session.execute("print('first', flush=True)\nprint(input('name? '))", on_input=answer):
        assert isinstance(output, Stream)
        texts.append(output.text)
        seen.set()
    assert "".join(texts) == "first\nname? False\n"


async def test_an_exception_is_a_result_with_ipythons_traceback(session: Session) -> None:
    result = await session.execute("def f():\n    return 1 / 0\nf()")
    assert result.status == "error"
    error = result.error
    assert isinstance(error, Error)
    assert error.ename == "ZeroDivisionError"
    assert any("return" in line for line in error.traceback)
    assert (await session.execute("'still here'")).text == "'still here'"


async def test_variables_stay_from_one_execution_to_the_next(session: Session) -> None:
    await session.execute("x = 41")
    assert (await session.execute("x + 1")).text == "42"


async def test_code_past_its_time_is_interrupted_and_keeps_its_variables(session: Session) -> None:
    await session.execute("x = 1")
    with pytest.raises(ExecutionTimeout, match="interrupted"):
        await session.execute("while True: pass", timeout=5)
    assert (await session.execute("x")).text == "1"


async def test_code_that_cannot_be_interrupted_costs_the_kernel(session: Session) -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nx = 1\nwhile True: pass"
    with pytest.raises(ExecutionTimeout, match="restarted"):
        await session.execute(code, timeout=5)
    result = await session.execute("'x' in globals()")
    assert result.text == "False"


async def test_interrupt_ends_the_code_that_runs(session: Session) -> None:
    running = session.execute("print('go', flush=True)\nwhile True: pass")
    async for output in running:
        if isinstance(output, Stream):
            await session.interrupt()
    assert (await running.result()).error is not None


async def test_restart_gives_an_empty_kernel_and_keeps_files(session: Session) -> None:
    await session.execute("x = 1; open('kept.txt', 'w').write('here')")
    await session.restart()
    assert (await session.execute("'x' in globals(), open('kept.txt').read()")).text == "(False, 'here')"


async def test_a_kernel_that_kills_itself_is_told_and_can_be_restarted(session: Session) -> None:
    with pytest.raises(KernelDied, match="signal 9"):
        await session.execute("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(KernelDied):
        await session.execute("1")
    await session.restart()
    assert (await session.execute("2")).text == "2"


async def test_code_runs_as_a_user_without_rights_over_the_agent(session: Session) -> None:
    code = "import os\ntry: os.kill(1, 9)\nexcept PermissionError as e: print(os.getuid(), e)"
    assert (await session.execute(code)).stdout.startswith("1000 ")


async def test_killing_all_processes_that_it_may_leaves_the_session_usable(session: Session) -> None:
    with pytest.raises(KernelDied):
        await session.execute("import os; os.kill(-1, 9); os.kill(os.getpid(), 9)")
    await session.restart()
    assert (await session.execute("1")).text == "1"


@pytest.mark.parametrize("size", [0, 1, 300_000, 30_000_000])
async def test_files_go_in_and_out_unchanged(session: Session, tmp_path: Path, size: int) -> None:
    source, back = tmp_path / "source.bin", tmp_path / "back.bin"
    source.write_bytes(os.urandom(size))
    assert await session.upload(source, "folder/data.bin") == size
    await session.download("folder/data.bin", back)
    assert back.read_bytes() == source.read_bytes()
    if size == 300_000:
        code = "import hashlib; hashlib.sha256(open('folder/data.bin','rb').read()).hexdigest()"
        assert (await session.execute(code)).text == repr(hashlib.sha256(source.read_bytes()).hexdigest())


async def test_an_upload_of_unknown_size_arrives_whole_and_a_broken_one_not_at_all(session: Session) -> None:
    async def pieces(count: int, *, broken: bool) -> AsyncGenerator[bytes]:
        for number in range(count):
            yield bytes([number]) * 100_000
        if broken:
            raise RuntimeError("the source failed")

    assert await session.files.upload_stream(pieces(5, broken=False), "whole.bin") == 500_000
    with pytest.raises(RuntimeError, match="the source failed"):
        await session.files.upload_stream(pieces(5, broken=True), "half.bin")
    assert (await session.execute("import os; [n for n in os.listdir('.') if 'half' in n]")).text == "[]"


async def test_uploaded_files_belong_to_the_user(session: Session) -> None:
    await session.upload(b"x", "mine.txt")
    assert (
        await session.execute("import os; os.stat('mine.txt').st_uid, open('mine.txt', 'a').write('y')")
    ).text == "(1000, 1)"


async def test_a_full_scratch_disk_refuses_the_upload_and_leaves_nothing(session: Session) -> None:
    # The disk is filled by reserving its space, which costs the host nothing.
    await session.execute(
        "import os\nfree = os.statvfs('.').f_bavail * os.statvfs('.').f_frsize\n"
        "with open('big', 'wb') as f: os.posix_fallocate(f.fileno(), 0, free - 2_000_000)"
    )
    with pytest.raises(TransferError, match=r"[Nn]o space"):
        await session.upload(bytes(20_000_000), "more.bin")
    assert (await session.execute("sorted(n for n in os.listdir('.') if n != 'big' and 'more' in n)")).text == "[]"


async def test_a_file_that_is_not_there_is_named(session: Session) -> None:
    with pytest.raises(TransferError, match="missing.csv"):
        await session.download("missing.csv")


async def test_kernel_info_tells_python_and_subshells(session: Session) -> None:
    info = await session.kernel_info()
    assert info["implementation"] == "ipython"
    assert "kernel subshells" in info["supported_features"]  # type: ignore[operator]


async def test_two_sessions_do_not_see_each_other(engine: Engine) -> None:
    async with engine.session(template="base") as one, engine.session(template="base") as two:
        await one.execute("x = 'secret'; open('secret.txt', 'w').write(x)")
        assert (await two.execute("import os; 'x' in globals(), os.path.exists('secret.txt')")).text == "(False, False)"
        await two.execute("open('secret.txt', 'w').write('other')")
        assert (await one.execute("open('secret.txt').read()")).text == "'secret'"


async def test_there_is_no_network_but_loopback(session: Session) -> None:
    assert (await session.execute("import os; os.listdir('/sys/class/net')")).text == "['lo']"


async def test_a_template_that_is_not_built_is_told_with_what_to_do(engine: Engine) -> None:
    with pytest.raises(TemplateNotFound, match="interpreter template build nothing"):
        async with engine.session(template="nothing"):
            pass


async def test_environment_reaches_the_code(engine: Engine) -> None:
    async with engine.session(template="base", environment={"GREETING": "hello"}) as session:
        assert (await session.execute("import os; os.environ['GREETING']")).text == "'hello'"
