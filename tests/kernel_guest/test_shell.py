"""What a session's kernel does otherwise than a stock one, seen from outside."""

import re

import pytest
from guest_on_host import Kernel

from interpreter.kernel.outputs import DisplayData, Stream


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("call", ["exit()", "quit()", "exit(3)", "import sys; sys.exit(3)"])
async def test_exit_ends_the_code_there_and_the_kernel_goes_on(kernel: Kernel, call: str) -> None:
    result = await kernel.run(f"kept = 'still'\n{call}\nprint('never')")
    assert (result.status, result.stdout, result.stderr) == ("error", "", "")
    assert result.error is not None
    assert result.error.ename == "SystemExit"
    assert "The kernel goes on" in result.error.traceback[-1]
    assert await kernel.printed("print(kept)") == "still\n"


@pytest.mark.parametrize("code", ["exit", "quit()", " exit( ) ;\n", "exit(keep_kernel=True)"])
async def test_exit_alone_is_no_error_and_the_kernel_goes_on(kernel: Kernel, code: str) -> None:
    await kernel.run("kept = 'still'")
    result = await kernel.run(code)
    assert (result.status, result.error) == ("ok", None)
    assert "The kernel goes on" in result.stderr
    assert await kernel.printed("print(kept)") == "still\n"


async def test_a_deep_recursion_is_told_in_a_few_frames(kernel: Kernel) -> None:
    result = await kernel.run("def deeper(n):\n    return deeper(n + 1)\ndeeper(0)")
    assert result.error is not None
    text = "\n".join(result.error.traceback)
    assert 2 <= text.count("deeper(n)") < 40
    assert "more" in text
    assert "maximum recursion depth" in text


async def test_a_short_traceback_is_whole(kernel: Kernel) -> None:
    result = await kernel.run("def outer(): inner()\ndef inner(): 1 / 0\nouter()")
    assert result.error is not None
    text = "\n".join(result.error.traceback)
    assert [word in text for word in ("outer()", "inner()", "ZeroDivisionError", "more")] == [True, True, True, False]


async def test_the_line_that_raised_is_shown_not_the_one_that_its_frame_came_to(kernel: Kernel) -> None:
    result = await kernel.run(
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('two') from error"
    )
    assert result.error is not None
    arrows = [line for line in plain("\n".join(result.error.traceback)).splitlines() if line.startswith("---->")]
    assert arrows == ["----> 2     1 / 0", "----> 4     raise ValueError('two') from error"]


async def test_the_modules_are_not_walked_for_a_traceback(kernel: Kernel) -> None:
    """`inspect.getmodule` copies and walks all modules for a file that it does not know."""
    code = (
        "import sys\n"
        "class Counted(dict):\n    walks = 0\n"
        "    def copy(self):\n        Counted.walks += 1\n        return dict(self)\n"
        "kept, sys.modules = sys.modules, Counted(sys.modules)\n"
    )
    await kernel.printed(code)
    result = await kernel.run("def deeper(n): return n and deeper(n - 1) or 1 / 0\ndeeper(50)")
    assert result.status == "error"
    assert await kernel.printed("sys.modules = kept\nprint(Counted.walks)") == "0\n"


async def test_an_exception_is_formatted_once(kernel: Kernel) -> None:
    code = "class Told(Exception):\n    count = 0\n    def __str__(self):\n        return 'told'\n"
    code += "    def _render_traceback_(self):\n        Told.count += 1\n        return ['told']\n"
    await kernel.printed(code)
    await kernel.run("raise Told")
    assert await kernel.printed("print(Told.count)") == "1\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"before\ud83dafter", "before\ufffdafter"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\udcff", "\ufffd"),
        (r"at the end \ud83d", "at the end \ufffd"),
    ],
)
async def test_half_a_character_costs_no_output(kernel: Kernel, text: str, shown: str) -> None:
    result = await kernel.run(f"print('first')\nprint('{text}')\n'{text}'")
    assert result.stdout == f"first\n{shown}\n"
    assert result.status == "ok"
    result = await kernel.run(f"raise ValueError('{text}')")
    assert result.error is not None
    assert result.error.evalue == shown


async def test_text_of_any_length_comes_in_pieces(kernel: Kernel) -> None:
    result = await kernel.run("print('x' * 5_000_000)")
    pieces = [output.text for output in result.outputs if isinstance(output, Stream)]
    assert "".join(pieces) == "x" * 5_000_000 + "\n"
    assert max(map(len, pieces)) <= 1_000_000


async def test_a_cell_with_the_line_ends_of_windows_runs(kernel: Kernel) -> None:
    assert await kernel.printed("%%bash\r\necho one\r\necho two\r\n") == "one\ntwo\n"
    assert await kernel.printed("for n in (1, 2):\r\n    print(n)\r\n") == "1\n2\n"


async def test_argparse_in_a_cell_finds_no_arguments(kernel: Kernel) -> None:
    code = "import argparse, sys\nparser = argparse.ArgumentParser()\nparser.add_argument('--number', default=3)\n"
    assert await kernel.printed(code + "print(parser.parse_args().number, len(sys.argv))") == "3 1\n"


@pytest.mark.parametrize("code", ["len?", "?len", "%pinfo len"])
async def test_what_is_shown_in_a_pager_is_an_output(kernel: Kernel, code: str) -> None:
    result = await kernel.run(code)
    (page,) = result.outputs
    assert isinstance(page, DisplayData)
    assert "Return the number of items in a container" in page.data["text/plain"]
