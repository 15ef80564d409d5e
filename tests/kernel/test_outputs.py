"""Outputs: each type as a model with its mime bundle; content that a kernel may not send is GuestMisbehaved."""

from typing import Any

import pytest

from interpreter import DisplayData, Error, ExecuteResult, Result, Stream
from interpreter.errors import GuestMisbehaved
from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.message import Codec
from interpreter.kernel.outputs import output_of

codec = Codec(b"", "s")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("stream", {"name": "stdout", "text": "x"}),
        ("display_data", {"data": {"text/html": "<b>"}, "metadata": {"a": 1}, "transient": {"display_id": "1"}}),
        ("update_display_data", {"data": {}, "metadata": {}, "transient": {}}),
        ("execute_result", {"data": {"text/plain": "2"}, "metadata": {}, "execution_count": 3}),
        ("error", {"ename": "E", "evalue": "v", "traceback": ["t"]}),
        ("clear_output", {"wait": True}),
    ],
)
def test_each_output_type_keeps_what_the_kernel_sent(kind: str, content: dict[str, Any]) -> None:
    assert kind in OUTPUT_TYPES
    assert output_of(codec.request(kind, content)).model_dump() == {"type": kind, **content}


@pytest.mark.parametrize(
    ("kind", "content"),
    [("stream", {"name": "stdlog", "text": "x"}), ("stream", {"name": "stdout"}), ("error", {"ename": 1})],
)
def test_wrong_content_is_guest_misbehaved_and_named(kind: str, content: dict[str, Any]) -> None:
    with pytest.raises(GuestMisbehaved, match=kind):
        output_of(codec.request(kind, content))


def test_a_result_gathers_text_streams_and_error() -> None:
    outputs = [
        Stream(name="stdout", text="a"),
        Stream(name="stderr", text="w"),
        DisplayData(data={"text/plain": "fig"}),
        Stream(name="stdout", text="b"),
        ExecuteResult(execution_count=1, data={"text/plain": "2", "text/html": "<b>2</b>"}),
        Error(ename="E", evalue="v"),
    ]
    result = Result(status="error", outputs=outputs)
    assert (result.stdout, result.stderr, result.text) == ("ab", "w", "2")
    assert result.data["text/html"] == "<b>2</b>"
    assert result.error == outputs[-1]
