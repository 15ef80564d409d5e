"""What `run` reads and what it writes: code, files, notebooks; images under names that are free; JSON lines."""

import base64
import json
from pathlib import Path

import pytest

from interpreter import ConfigurationError, DisplayData, ExecuteResult, Stream
from interpreter.cli.display import Display
from interpreter.cli.source import Cell, read_cells

PNG = base64.b64encode(b"\x89PNG").decode()


def test_code_file_and_notebook_become_cells(tmp_path: Path) -> None:
    script, notebook = tmp_path / "a.py", tmp_path / "a.ipynb"
    script.write_text("1")
    cells = [
        {"cell_type": "markdown", "source": "# x"},
        {"cell_type": "code", "source": ["a\n", "b"]},
        {"cell_type": "code", "source": "c"},
    ]
    notebook.write_text(json.dumps({"cells": cells}))
    assert read_cells("1+1", None) == [Cell("1+1")]
    assert read_cells(None, script) == [Cell("1")]
    assert read_cells(None, notebook) == [Cell("a\nb", 1), Cell("c", 2)]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"cells": [{}]}', b"\xff"])
def test_a_file_that_is_no_notebook_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="x.ipynb"):
        read_cells(None, path)


def test_a_missing_file_and_both_or_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_cells(None, tmp_path / "missing.py")
    with pytest.raises(ConfigurationError, match="either"):
        read_cells(None, None)
    with pytest.raises(ConfigurationError, match="either"):
        read_cells("1", tmp_path)


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
