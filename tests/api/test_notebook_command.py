"""``interpreter session notebook`` as a user runs it, in a process of its own, against the real service."""

import asyncio
import json
import os
import pty
import signal
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from served import SECONDS, Api

pytestmark = pytest.mark.machine

HIDDEN = {"INTERPRETER_API_KEY", "FORCE_COLOR"}
# What it waits for, and what becomes of a Ctrl-C, is told when it is asked by a signal.
PROGRAM = """
import asyncio, signal, sys

def tell(*_):
    print("on SIGINT:", signal.getsignal(signal.SIGINT), file=sys.stderr)
    for task in asyncio.all_tasks():
        print(task, file=sys.stderr)
        task.print_stack()

signal.signal(signal.SIGUSR1, tell)
from interpreter.cli import main
main()
"""


class Command:
    """Runs the command with one service, in a folder with notebooks."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._url = f"http://127.0.0.1:{api.port}"
        self.folder = folder

    def write(self, name: str, *sources: str) -> str:
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), self.folder / name)
        return name

    async def start(self, *arguments: str, stderr: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, "session", "notebook", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            cwd=self.folder,
            env={
                **{name: value for name, value in os.environ.items() if name not in HIDDEN},
                "INTERPRETER_URL": self._url,
                "TERM": "xterm",
            },
        )

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        async with asyncio.timeout(SECONDS):
            process = await self.start(*arguments)
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def command(api: Api, tmp_path: Path) -> Command:
    return Command(api, tmp_path)


async def test_a_notebook_with_parameters_becomes_a_file(command: Command) -> None:
    name = command.write("a.ipynb", "print(alpha, name, flag, parts, left)")
    parameters = (
        "-p",
        "alpha",
        "-0.5",
        "-p",
        "name",
        "a b",
        "-p",
        "flag",
        "True",
        "-p",
        "parts",
        "[1]",
        "-p",
        "left",
        "-p",
    )
    code, out, err = await command(name, *parameters, "--out", "b.ipynb")
    assert (code, out) == (0, ""), err
    assert "b.ipynb in" in err
    executed = nbformat.read(command.folder / "b.ipynb", as_version=4)
    nbformat.validate(executed)
    assert executed.cells[1].outputs[0].text == "-0.5 a b True [1] -p\n"
    assert sorted(path.name for path in command.folder.iterdir()) == ["a.ipynb", "b.ipynb"]


async def test_exit_codes(command: Command, shared: str) -> None:
    in_shared = ("--session", shared)
    code, _, err = await command(command.write("a.ipynb", "1", "1 / 0"), *in_shared, "--out", "a.ipynb")
    assert (code, "ended in cell 1" in err) == (1, True)
    assert "ZeroDivisionError: division by zero" in err
    assert "\x1b" not in err
    # Over itself: what was run is an input no more.
    assert nbformat.read(command.folder / "a.ipynb", as_version=4).cells[1].outputs[0].ename == "ZeroDivisionError"
    assert (await command("a.ipynb", *in_shared, "--allow-errors"))[0] == 0
    code, _, err = await command(command.write("b.ipynb", "while True: pass"), *in_shared, "--timeout", "1")
    assert (code, "execution_timeout" in err) == (124, True)
    code, _, err = await command(command.write("c.ipynb", "import os\nos._exit(1)"), *in_shared)
    assert (code, "kernel_died" in err) == (3, True)


async def test_json_is_the_answer(command: Command, shared: str) -> None:
    name = command.write("a.ipynb", "print(1)")
    code, out, err = await command(name, "--session", shared, "--json")
    answer: dict[str, Any] = json.loads(out)
    assert (code, err, answer["status"], answer["session_id"]) == (0, "", "ok", shared)
    assert answer["notebook"]["cells"][0]["outputs"][0]["text"] == "1\n"
    code, out, err = await command(name, "--session", shared, "--json", "--out", "b.ipynb")
    assert (code, err, "notebook" in json.loads(out)) == (0, "", False)


async def test_cells_are_counted_on_a_terminal(command: Command, shared: str) -> None:
    terminal, other = pty.openpty()
    process = await command.start(command.write("a.ipynb", "1", "2", "3"), "--session", shared, stderr=other)
    os.close(other)
    seen = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SECONDS):
        # A terminal whose other end is closed has nothing more to read.
        while piece := await loop.run_in_executor(None, read, terminal):
            seen += piece
        assert await process.wait() == 0
    os.close(terminal)
    assert b"a.ipynb" in seen
    assert b"3/3" in seen


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:
        return b""


async def test_ctrl_c_interrupts_the_cell_and_leaves_the_session(command: Command, api: Api, shared: str) -> None:
    name = command.write("a.ipynb", "open('ctrl-c', 'w').close()\nwhile True: pass")
    process = await command.start(name, "--session", shared)
    async with asyncio.timeout(SECONDS):
        url = f"/v1/sessions/{shared}/files/entry"
        while (await api.client.get(url, params={"path": "ctrl-c"})).status_code != 200:
            continue
        process.send_signal(signal.SIGINT)
        err = await told(process)
    assert (process.returncode, b"Interrupted" in err) == (130, True)
    assert await api.printed(shared, "print(1)") == "1\n"


async def told(process: asyncio.subprocess.Process) -> bytes:
    """What a process that is to end says; when it does not end, what it is doing."""
    communicating = asyncio.create_task(process.communicate())
    done, _ = await asyncio.wait({communicating}, timeout=SECONDS / 2)
    if not done:
        process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(1)
        process.kill()
        raise AssertionError((await communicating)[1].decode())
    return communicating.result()[1]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("missing.ipynb",), 3, "missing.ipynb cannot be read"),
        (("bad.ipynb",), 3, "bad.ipynb is not a Jupyter notebook"),
        (("empty.ipynb",), 3, "no nbformat"),
        (("a.ipynb", "-p", "x"), 2, "a name and a value"),
        (("a.ipynb", "-p", "not a name", "1"), 3, "not the name of a variable"),
        (("a.ipynb", "--session", "nothing"), 3, "there is no session"),
        (("a.ipynb", "--session", "nothing", "-t", "base"), 3, "not for --session"),
        (("a.ipynb", "-t", "nothing"), 3, "nothing"),
        (("a.ipynb", "--out", "missing/b.ipynb"), 3, "missing/b.ipynb cannot be written"),
    ],
)
async def test_bad_input_gives_one_clear_error(
    command: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    command.write("a.ipynb", "1")
    (command.folder / "bad.ipynb").write_text("[1, 2]")
    (command.folder / "empty.ipynb").write_text("{}")
    status, _, err = await command(*arguments)
    assert (status, said in err) == (code, True), err
