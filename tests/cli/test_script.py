"""Files run as programs inside IPython, here in a shell of this process: what the kernel of a session is sent."""

import asyncio
import atexit
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from interpreter.cli.script import run_script


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Generator[InteractiveShell]:
    options = Config()
    options.HistoryManager.enabled = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield InteractiveShell(config=options)


@pytest.fixture
def run(shell: InteractiveShell, tmp_path: Path):
    def run(source: str | bytes, *arguments: str) -> dict[str, Any]:
        path = tmp_path / "program.py"
        path.write_bytes(source if isinstance(source, bytes) else source.encode())
        run_script(shell, str(path), arguments)
        return shell.user_ns

    return run


async def test_a_program_may_run_an_event_loop_where_one_runs(run, capsys: pytest.CaptureFixture[str]) -> None:
    loop = asyncio.get_running_loop()
    run(
        "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print('ran')\n"
        "asyncio.run(main())\nasyncio.get_event_loop_policy().new_event_loop().run_until_complete(main())\n"
    )
    assert capsys.readouterr().out == "ran\nran\n"
    assert asyncio.get_running_loop() is loop
    assert asyncio.get_event_loop() is loop
    await asyncio.sleep(0)


def test_a_program_knows_its_name_and_arguments_and_leaves_its_variables(run, tmp_path: Path) -> None:
    argv, path = sys.argv, list(sys.path)
    names = run(
        "import sys\nseen = (__name__, __file__, sys.argv, sys.path[0])\n"
        "if __name__ == '__main__':\n    import __main__\n",
        "--alpha",
        "1",
    )
    file = str(tmp_path / "program.py")
    assert names["seen"] == ("__main__", file, [file, "--alpha", "1"], str(tmp_path))
    assert "__file__" not in names
    assert (sys.argv, sys.path) == (argv, path)


@pytest.mark.parametrize(
    "source",
    ["\ufeffx = 'é'\n".encode(), "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"), "x = 'é'\r\n".encode()],
    ids=["byte-order mark", "latin-1", "windows"],
)
def test_a_program_is_read_in_its_encoding(run, source: bytes) -> None:
    assert run(source)["x"] == "é"


@pytest.mark.parametrize("code", ["", "0", "None", "False"], ids=["nothing", "0", "None", "False"])
def test_a_program_that_exits_well_raises_nothing(run, code: str) -> None:
    assert run(f"import sys\nx = 1\nsys.exit({code})\nx = 2")["x"] == 1


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [("3", 3, ""), ("True", 1, ""), ("'no'", 1, "no\n"), ("'3'", 1, "3\n"), ("[1]", 1, "[1]\n")],
    ids=["3", "True", "text", "digits", "list"],
)
def test_how_a_program_exits_is_told(
    run, capsys: pytest.CaptureFixture[str], code: str, status: int, told: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run(f"raise SystemExit({code})")
    assert end.value.code == status
    assert type(end.value.code) is int
    assert capsys.readouterr().err == told


def test_an_error_shows_no_frames_but_those_of_the_program(shell: InteractiveShell, run, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run("def f():\n    1 / 0\nf()\n")
    text = "\n".join(raised.value._render_traceback_())  # type: ignore[attr-defined]
    assert "program.py" in text
    assert "run_script" not in text


def test_a_syntax_error_shows_its_line_and_nothing_else(
    shell: InteractiveShell, run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shell.SyntaxTB
    try:
        run("x = = 1\n")
    except SyntaxError:
        shell.showtraceback(running_compiled_code=True)
    shown = capsys.readouterr().out
    assert "x = = 1" in shown
    assert "run_script" not in shown
    assert shell.SyntaxTB is before


def test_what_a_program_registers_for_its_end_runs_then(run, capsys: pytest.CaptureFixture[str]) -> None:
    register, before = atexit.register, atexit._ncallbacks()  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        run(
            "import atexit, sys\n@atexit.register\ndef last(): print('last')\n"
            "atexit.register(print, 'never')\natexit.unregister(print)\natexit.register(lambda: 1 / 0)\n"
            "atexit.register(print, 'first', end='.\\n')\nprint('body')\nsys.exit(3)\n"
        )
    told = capsys.readouterr()
    assert told.out == "body\nfirst.\nlast\n"
    assert "ZeroDivisionError" in told.err
    assert (atexit.register, atexit._ncallbacks()) == (register, before)  # type: ignore[attr-defined]


def test_a_program_has_its_own_docstring_or_none(run) -> None:
    assert run("x = __doc__\n")["x"] is None
    assert run("'About.'\nx = __doc__\n")["x"] == "About."


def test_threads_are_waited_for_and_files_are_flushed(run, tmp_path: Path) -> None:
    names = run(
        "import threading, time\ndone = []\n"
        "release = threading.Event()\n"
        "threading.Thread(target=lambda: (release.wait(), done.append(1))).start()\n"
        "threading.Timer(0.1, release.set).start()\n"
        f"file = open({str(tmp_path / 'out.txt')!r}, 'w')\nfile.write('all')\n"
    )
    assert names["done"] == [1]
    assert (tmp_path / "out.txt").read_text() == "all"
    names["file"].close()
