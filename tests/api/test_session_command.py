"""``interpreter session`` as a user runs it, in a process of its own, against the real service."""

import asyncio
import json
import os
import pty
import signal
import sys
from pathlib import Path

import pytest
from served import SECONDS, Api

pytestmark = pytest.mark.machine

HIDDEN = {"INTERPRETER_API_KEY", "FORCE_COLOR"}


async def start(
    url: str, *arguments: str, folder: Path | None = None, stdin: int = asyncio.subprocess.DEVNULL
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from interpreter.cli import main; main()", "session", *arguments),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name not in HIDDEN}, "INTERPRETER_URL": url},
    )


async def finish(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback (most recent call last)" not in err or b"interpreter/cli" not in err
    return process.returncode, out.decode(), err.decode()


class Command:
    """Runs the command with one service."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._url = f"http://127.0.0.1:{api.port}"
        self._folder = folder

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await start(self._url, *arguments, folder=self._folder)

    async def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return await finish(await self.start(*arguments))

    async def json(self, *arguments: str) -> list[dict[str, object]]:
        """The lines of JSON of a command that ends well."""
        code, out, err = await self(*arguments, "--json")
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def command(api: Api, tmp_path: Path) -> Command:
    return Command(api, tmp_path)


async def test_a_session_from_its_start_to_its_end(command: Command) -> None:
    options = ("--name", "[bold]x", "--timeout", "100", "--timeout-mode", "idle", "--env", "A=b=c", "-t", "base")
    code, out, err = await command("create", *options)
    session_id = out.strip()
    assert (code, err, len(session_id)) == (0, "", 32)
    (shown,) = await command.json("show", session_id)
    assert (shown["name"], shown["timeout_seconds"], shown["timeout_mode"], shown["env"]) == (
        "[bold]x",
        100,
        "idle",
        ["A"],
    )
    assert await command("exec", session_id, "-c", "import os\nos.environ['A']") == (0, "'b=c'\n", "")
    code, out, _ = await command("list", "--state", "running")
    assert code == 0
    assert any(session_id in line and "[bold]x" in line for line in out.splitlines())
    code, out, _ = await command("show", session_id)
    assert "100 s (idle)" in out
    code, _, err = await command("stop", "nothing", session_id)
    assert (code, session_id in err, "there is no session 'nothing'" in err) == (3, True, True)
    (shown,) = await command.json("show", session_id)
    assert (shown["state"], shown["reason"]) == ("stopped", "user")
    (listed,) = await command.json("list", "--state", "running")
    assert session_id not in json.dumps(listed)


async def test_exit_codes_of_code(command: Command, shared: str) -> None:
    code, out, err = await command("exec", shared, "-c", "print('a')\n1 / 0")
    assert (code, out) == (1, "a\n")
    assert "ZeroDivisionError: division by zero" in err
    assert "\x1b" not in err
    code, _, err = await command("exec", shared, "-c", "while True: pass", "--timeout", "1")
    assert code == 124
    assert "execution_timeout" in err
    code, _, err = await command("exec", shared, "-c", "1", "--context", "nothing")
    assert (code, "not_found" in err) == (3, True)
    code, _, err = await command("exec", shared)
    assert (code, "-c CODE or a file" in err) == (3, True)


async def test_a_file_and_its_images(command: Command, shared: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from IPython.display import Image, display\nprint('hi')\n"
        "display(Image(data=b'\\x89PNG\\r\\n\\x1a\\nxx', format='png', width=1, height=1))"
    )
    code, out, err = await command("exec", shared, str(script), "--out", str(tmp_path / "o"))
    assert (code, out) == (0, "hi\n"), err
    assert (tmp_path / "o" / "figure-1.png").read_bytes().startswith(b"\x89PNG")


PROGRAM = """# -*- coding: latin-1 -*-
import asyncio, os, sys, threading

async def main():
    await asyncio.sleep(0)
    print("ran", os.path.basename(__file__), sys.argv[1:], "café", flush=True)

if __name__ == "__main__":
    asyncio.run(main())
    threading.Thread(target=lambda: (threading.Event().wait(0.2), print("thread", flush=True))).start()
    left = open("left.txt", "w")
    left.write("flushed")
    if sys.argv[1] == "fail":
        {}["a"]
    sys.exit("bye" if sys.argv[1] == "text" else int(sys.argv[1]))
"""


@pytest.mark.parametrize("argument", ["0", "3", "-1", "text", "fail"])
async def test_a_file_runs_as_with_python(command: Command, shared: str, tmp_path: Path, argument: str) -> None:
    script = tmp_path / "a program.py"
    script.write_text(PROGRAM, encoding="latin-1")
    plain = await asyncio.create_subprocess_exec(
        *(sys.executable, script.name, argument),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    code, out, err = await finish(plain)
    told = await command("exec", shared, str(script), "--", argument)
    assert told[:2] == (code, out)
    assert told[2].splitlines()[-1:] == err.splitlines()[-1:]
    # What it has written is there although it closed nothing, and its variables are.
    assert await command("sh", shared, "cat left.txt") == (0, "flushed", "")
    assert await command("exec", shared, "-c", "print(left.name, '__file__' in globals())") == (
        0,
        "left.txt False\n",
        "",
    )


async def test_a_file_that_is_no_python_shows_where(command: Command, shared: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("x = 1\nx = = 2\n")
    code, out, err = await command("exec", shared, "wrong.py")
    assert (code, out) == (1, "")
    assert "wrong.py:2" in err
    assert "run_script" not in err


async def test_code_that_exits_is_no_error(command: Command, shared: str) -> None:
    for code, ending in (("0", (0, "", "")), ("5", (5, "", "")), ("'no'", (1, "", "no\n"))):
        assert await command("exec", shared, "-c", f"import sys; sys.exit({code})") == ending


async def test_a_notebook_runs_as_the_service_runs_it(command: Command, shared: str, tmp_path: Path) -> None:
    cells = [
        {"cell_type": "code", "input": ["print('one')", "1 / 0"], "metadata": {"tags": ["raises-exception"]}},
        {"cell_type": "code", "input": "print('left out')", "metadata": {"tags": ["skip-execution"]}},
        {"cell_type": "code", "input": "print('two')"},
        {"cell_type": "code", "input": "exit()"},
        {"cell_type": "code", "input": "print('never')"},
    ]
    (tmp_path / "old.ipynb").write_text(json.dumps({"nbformat": 3, "worksheets": [{"cells": cells}]}))
    code, out, err = await command("exec", shared, "old.ipynb")
    assert (code, out) == (0, "one\ntwo\n")
    assert "ZeroDivisionError" in err


async def test_output_that_the_terminal_has_no_characters_for_is_escaped(
    command: Command, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert await command("exec", shared, "-c", "print('café')") == (0, "caf\\xe9\n", "")
    lines = await command.json("exec", shared, "-c", "print('café')")
    assert lines[0]["text"] == "café\n"


async def test_json_gives_one_object_a_line_and_the_result_last(command: Command, session_id: str) -> None:
    lines = await command.json("exec", session_id, "-c", "print(1)")
    assert lines == [
        {"type": "stream", "name": "stdout", "text": "1\n"},
        {"type": "result", "status": "ok", "execution_count": 1, "cell": 1},
    ]


async def test_input_is_asked_for_on_a_terminal(api: Api, shared: str) -> None:
    terminal, other = pty.openpty()
    arguments = ("exec", shared, "-c", "import getpass\nprint(input('name? '), getpass.getpass('key? '))")
    process = await start(f"http://127.0.0.1:{api.port}", *arguments, stdin=other)
    os.close(other)
    assert process.stderr is not None
    async with asyncio.timeout(SECONDS):
        assert await process.stderr.readexactly(6) == b"name? "
        os.write(terminal, b"Ada\n")
        assert await process.stderr.readexactly(5) == b"key? "
        os.write(terminal, b"secret\n")
    code, out, err = await finish(process)
    os.close(terminal)
    assert (code, out, err) == (0, "Ada secret\n", "")


async def test_input_is_read_from_a_pipe_and_ends_with_it(api: Api, shared: str, tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text("print(input('name? '))\nprint(input())\ntry:\n    input()\nexcept EOFError:\n    print('end')\n")
    url = f"http://127.0.0.1:{api.port}"
    process = await start(url, "exec", shared, str(script), stdin=asyncio.subprocess.PIPE)
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate(b"Ada\nBob")
    assert (process.returncode, out, err) == (0, b"name? Ada\nBob\nend\n", b"")


async def test_ctrl_c_interrupts_the_code_and_leaves_the_session(command: Command, shared: str) -> None:
    process = await command.start("exec", shared, "-c", "print('go', flush=True)\nwhile True: pass")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"go\n"
    process.send_signal(signal.SIGINT)
    code, _, err = await finish(process)
    assert (code, "Interrupted" in err) == (130, True)
    assert await command("exec", shared, "-c", "2") == (0, "2\n", "")


async def test_shell_commands(command: Command, shared: str) -> None:
    assert await command("sh", shared, "echo a; echo b >&2; exit 7") == (7, "a\n", "b\n")
    assert (await command("sh", shared, "kill -9 $$"))[0] == 137
    assert await command("sh", shared, "pwd", "--cwd", "/tmp") == (0, "/tmp\n", "")
    code, _, err = await command("sh", shared, "sleep 60", "--timeout", "0.5")
    assert (code, "did not end within 0.5 s" in err) == (124, True)
    lines = await command.json("sh", shared, "echo a")
    assert [line["type"] for line in lines] == ["started", "stream", "done"]


async def test_files_up_down_and_listed(command: Command, shared: str, tmp_path: Path) -> None:
    data = os.urandom(2_000_000)
    (tmp_path / "a.bin").write_bytes(data)
    (tmp_path / "ä b.txt").write_text("x")
    assert await command("upload", shared, "a.bin", "ä b.txt", "--to", "command/up") == (0, "", "")
    code, out, _ = await command("ls", shared, "command/up")
    assert code == 0
    assert [line.split()[1] for line in out.splitlines()] == ["2000000", "1"]
    (listed,) = await command.json("ls", shared, "command/up")
    assert [entry["name"] for entry in listed["entries"]] == ["a.bin", "ä b.txt"]  # type: ignore[index, attr-defined]
    assert (await command("download", shared, "command/up/a.bin", "--out", "back.bin"))[0] == 0
    assert (tmp_path / "back.bin").read_bytes() == data
    assert await command.json("download", shared, "command/up/ä b.txt") == [{"path": "ä b.txt", "size": 1}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "back.bin", "ä b.txt"]


async def test_a_download_goes_to_a_folder_a_pipe_or_standard_output(
    command: Command, shared: str, tmp_path: Path
) -> None:
    data = os.urandom(300_000)
    (tmp_path / "a.bin").write_bytes(data)
    await command("upload", shared, "a.bin", "--to", "targets")
    (tmp_path / "folder").mkdir()
    assert await command("download", shared, "targets/a.bin", "--out", "folder") == (0, "", "")
    assert (tmp_path / "folder/a.bin").read_bytes() == data
    (tmp_path / "a.bin").unlink()
    assert await command.json("download", shared, "targets/a.bin", "--out", ".") == [{"path": "a.bin", "size": 300_000}]
    assert (tmp_path / "a.bin").read_bytes() == data
    process = await command.start("download", shared, "targets/a.bin", "--out", "-")
    async with asyncio.timeout(SECONDS):
        assert await process.communicate() == (data, b"")
    # What is no file stays what it is.
    os.mkfifo(tmp_path / "pipe")
    reader = asyncio.create_task(asyncio.to_thread((tmp_path / "pipe").read_bytes))
    assert await command("download", shared, "targets/a.bin", "--out", "pipe") == (0, "", "")
    assert await reader == data
    assert (tmp_path / "pipe").is_fifo()


async def test_a_download_writes_through_a_link_and_leaves_other_files_alone(
    command: Command, shared: str, tmp_path: Path
) -> None:
    await command("sh", shared, "echo new > through.txt")
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "link.part").write_text("somebody's")
    assert (await command("download", shared, "through.txt", "--out", "link"))[0] == 0
    assert [(tmp_path / name).read_text() for name in ("real", "link.part")] == ["new\n", "somebody's"]
    assert (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 3


async def test_a_download_to_a_folder_that_takes_none_is_told(command: Command, shared: str) -> None:
    await command("sh", shared, "echo 1 > rights.txt")
    code, _, err = await command("download", shared, "rights.txt", "--out", "/proc")
    assert (code, "/proc cannot be used" in err, "Traceback" in err) == (3, True, False)


async def test_names_of_any_bytes_go_through_the_command(command: Command, shared: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("latin")
    assert (await command("upload", shared, name, "--to", "bytes"))[0] == 0
    (listed,) = await command.json("ls", shared, "bytes")
    assert [entry["encoded"] for entry in listed["entries"]] == ["caf%E9.txt"]  # type: ignore[index, attr-defined]
    (tmp_path / name).unlink()
    assert (await command("download", shared, f"bytes/{name}"))[0] == 0
    assert (tmp_path / name).read_text() == "latin"
    code, _, err = await command("download", shared, f"bytes/x{name}")
    assert (code, "xcaf\\xe9.txt could not be read" in err) == (3, True)


async def test_a_name_in_a_session_cannot_draw_on_the_terminal(command: Command, session_id: str) -> None:
    await command("sh", session_id, "touch $'a\\e[2J' '[red]b'")
    _, out, _ = await command("ls", session_id)
    assert "\x1b" not in out
    assert "[red]b" in out


async def test_usage(command: Command, shared: str) -> None:
    (used,) = await command.json("usage", shared)
    assert used["session_id"] == shared
    code, out, _ = await command("usage", shared)
    assert (code, "CPU" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "nothing"), 3, "there is no session 'nothing'"),
        (("show", ""), 3, "is not the name of anything"),
        (("create", "-t", "nothing"), 3, "nothing"),
        (("create", "--env", "x"), 2, "NAME=VALUE"),
        (("create", "--timeout", "99999"), 3, "timeout_seconds"),
        (("upload", "nothing", "missing.csv"), 3, "missing.csv is not a file"),
        (("download", "nothing", "x"), 3, "there is no session"),
        (("list", "--state", "nonsense"), 3, "state"),
        (("sh", "nothing", "true"), 3, "there is no session"),
        (("usage", "nothing"), 3, "there is no session"),
    ],
)
async def test_bad_input_gives_one_clear_error(
    command: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    status, _, err = await command(*arguments)
    assert status == code
    assert said in err


async def test_a_download_to_nowhere_is_told(command: Command, shared: str) -> None:
    await command("sh", shared, "echo 1 > down.txt")
    code, _, err = await command("download", shared, "down.txt", "--out", "missing/x")
    assert (code, "missing/x cannot be used: No such file or directory" in err) == (3, True)
    code, _, err = await command("download", shared, "down.txt", "--out", "-", "--json")
    assert (code, "cannot take both" in err) == (2, True)
    assert (await command("download", shared, ".", "--out", "."))[0] == 3


async def test_no_service_is_told() -> None:
    code, out, err = await finish(await start("http://127.0.0.1:9", "list"))
    assert (code, out) == (3, "")
    assert "no service answers at http://127.0.0.1:9" in err
    code, out, _ = await finish(await start("http://127.0.0.1:9", "list", "--json"))
    assert (code, json.loads(out)["error"]["code"]) == (3, "service_unreachable")
    code, _, err = await finish(await start("nonsense", "list"))
    assert (code, "is not the address of a service" in err) == (3, True)
