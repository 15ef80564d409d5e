"""What `run` reads and what it writes: code, files, notebooks; images under names that are free; JSON lines."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from interpreter import ConfigurationError, DisplayData, Error, ExecuteResult, Stream
from interpreter.cli.cells import CellsShown
from interpreter.cli.display import Display
from interpreter.cli.source import Cell, Source, read_source

PNG = base64.b64encode(b"\x89PNG").decode()


def test_code_is_one_cell() -> None:
    assert read_source("1+1", None) == Source([Cell("1+1")])


def test_a_file_goes_into_the_session_as_it_is(tmp_path: Path) -> None:
    script = tmp_path / "a b.py"
    script.write_bytes(b"# coding: latin-1\n'\xe9'")
    source = read_source(None, script, ["--x", "it's"])
    assert source.files == {"a b.py": b"# coding: latin-1\n'\xe9'"}
    (cell,) = source.cells
    assert cell.code.endswith("""(get_ipython(), '/home/user/a b.py', ['--x', "it's"]))({'__name__': 'interpreter'})""")
    assert not cell.store_history


def test_a_file_of_ipythons_is_one_cell(tmp_path: Path) -> None:
    script = tmp_path / "a.ipy"
    script.write_bytes(b"\xef\xbb\xbf%time 1")
    assert read_source(None, script) == Source([Cell("%time 1")])


@pytest.mark.parametrize("major", [3, 4])
def test_of_a_notebook_those_cells_are_run_that_are_to_be(tmp_path: Path, major: int) -> None:
    def code(source: str | list[str], *tags: str) -> dict[str, object]:
        return {"cell_type": "code", ("source" if major == 4 else "input"): source, "metadata": {"tags": tags}}

    cells = [
        {"cell_type": "markdown", "source": "# x"},
        code(["a\n", "b"]),
        code("c", "skip-execution"),
        code(" "),
        code("d", "raises-exception"),
        code("e", "papermill-error-cell-tag"),
        code("exit()"),
    ]
    content = {"cells": cells} if major == 4 else {"worksheets": [{"cells": cells}]}
    notebook = tmp_path / "a.ipynb"
    notebook.write_text("\ufeff" + json.dumps({"nbformat": major, **content}), encoding="utf-8")
    assert read_source(None, notebook) == Source(
        [Cell("a\nb", 1), Cell("d", 4, may_raise=True), Cell("exit()", 5, ends=True)]
    )


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"cells": [{}]}', b"\xff"], ids=["cut", "list", "no version", "no text"]
)
def test_a_file_that_is_no_notebook_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="x.ipynb"):
        read_source(None, path)


def test_a_missing_file_and_both_or_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_source(None, tmp_path / "missing.py")
    with pytest.raises(ConfigurationError, match="either"):
        read_source(None, None)
    with pytest.raises(ConfigurationError, match="either"):
        read_source("1", tmp_path)


def test_images_never_overwrite_a_file(tmp_path: Path) -> None:
    (tmp_path / "figure-1.png").write_bytes(b"mine")
    display = Display(tmp_path)
    display.show(DisplayData(data={"image/png": PNG, "text/plain": "<Figure>"}))
    display.show(ExecuteResult(execution_count=1, data={"image/svg+xml": "<svg/>"}))
    assert (tmp_path / "figure-1.png").read_bytes() == b"mine"
    assert [path.name for path in display.saved] == ["figure-2.png", "figure-1.svg"]
    assert display.saved[0].read_bytes() == b"\x89PNG"


def test_json_lines_carry_the_whole_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(tmp_path, json_lines=True)
    display.show(Stream(name="stdout", text="ü\n"))
    display.show(DisplayData(data={"image/png": PNG}))
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"type": "stream", "name": "stdout", "text": "ü\n"}
    assert second["saved"].endswith("figure-1.png")
    assert second["data"] == {"image/png": PNG}


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        Display(tmp_path / "file" / "x").show(DisplayData(data={"image/png": PNG}))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_written_in_any_encoding(encoding: str) -> None:
    program = (
        "from interpreter.cli.terminal import prepare_streams, print_json\nprepare_streams()\n"
        "text = 'caf\\xe9 \\u4e2d \\ud83d'\nprint(text)\nprint_json({'text': text})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=True,
    )
    plain, line = result.stdout.decode(encoding).splitlines()
    assert plain.startswith("caf")
    assert json.loads(line) == {"text": "caf\xe9 \u4e2d \ud83d"}


@pytest.mark.parametrize(
    ("evalue", "status", "told"),
    [("0", 0, ""), ("None", 0, ""), ("", 0, ""), ("3", 3, ""), ("-1", 255, ""), ("no", 1, "no\n")],
    ids=["0", "None", "nothing", "3", "-1", "text"],
)
def test_a_cell_that_exits_leads_to_the_exit_code_that_python_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], evalue: str, status: int, told: str
) -> None:
    shown = CellsShown(tmp_path, json_lines=False)
    shown.show(Cell("exit(1)"), Error(ename="SystemExit", evalue=evalue, traceback=["SystemExit"]))
    assert shown.ended(Cell("exit"), "error", 1) == status
    assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize("code", ["exit", " quit() ; ", "exit(keep_kernel=True)\n"], ids=["exit", "quit", "keep"])
def test_code_that_is_nothing_but_exit_ends_it_and_shows_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    (cell,) = read_source(code, None).cells
    shown = CellsShown(tmp_path, json_lines=False)
    shown.show(cell, Stream(name="stderr", text="The kernel goes on."))
    assert shown.ended(cell, "ok", 1) == 0
    assert capsys.readouterr() == ("", "")


def test_code_that_was_interrupted_leads_to_the_exit_code_of_that(tmp_path: Path) -> None:
    shown = CellsShown(tmp_path, json_lines=False)
    shown.show(Cell("f()"), Error(ename="KeyboardInterrupt", evalue="", traceback=[]))
    assert shown.ended(Cell("f()"), "error", 1) == 130


def test_only_a_cell_that_may_raise_does_not_end_it(tmp_path: Path) -> None:
    shown = CellsShown(tmp_path, json_lines=False)
    for cell, code in ((Cell("1/0", may_raise=True), None), (Cell("1/0"), 1)):
        shown.show(cell, Error(ename="ValueError", evalue="3"))
        assert shown.ended(cell, "error", 1) == code
    assert shown.ended(Cell("1"), "ok", 1) is None
    assert shown.ended(Cell("1", may_raise=True), "aborted", 1) == 1
