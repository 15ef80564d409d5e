"""A client whose kernel is gone gets what it waits for: a reply to each request, and that the kernel is idle."""

import json
from typing import Any

import pytest

from interpreter.gateway.pending import Pending
from interpreter.kernel.memory import Room
from interpreter.kernel.message import Codec
from interpreter.kernel.websocket import ClientMessage

CODEC = Codec(b"key", "session")
WHY = "the kernel died (exit status 1)"


def request(msg_type: str, content: dict[str, Any] | None = None, msg_id: str = "1", channel: str = "shell"):
    header = {"msg_id": msg_id, "msg_type": msg_type, "session": "mine", "subshell_id": "s"}
    return ClientMessage(channel, msg_type, [json.dumps(part).encode() for part in (header, {}, {}, content or {})])


def told(pending: Pending) -> list[tuple[str, str, dict[str, Any]]]:
    answers = list(pending.answers(CODEC, WHY))
    assert all(message.parent["session"] == "mine" for _, message in answers)
    return [(channel, message.type, message.content()) for channel, message in answers]


@pytest.fixture
def room() -> Room:
    return Room(1_000_000)


def test_a_cell_that_ran_gets_its_error_its_reply_and_idle(room: Room) -> None:
    pending = Pending(room)
    pending.sent(request("execute_request", {"code": "1"}))
    pending.noted("1", "busy")
    (error, reply, idle) = told(pending)
    assert error[:2] == ("iopub", "error")
    assert error[2]["evalue"] == WHY
    assert reply[:2] == ("shell", "execute_reply")
    assert (reply[2]["status"], reply[2]["ename"], reply[2]["evalue"]) == ("error", "KernelDied", WHY)
    assert idle == ("iopub", "status", {"execution_state": "idle"})
    assert told(pending) == []
    assert room.held == 0


@pytest.mark.parametrize("content", [{"code": "1"}, {"code": "1", "silent": True}], ids=["waits", "silent"])
def test_a_cell_that_waits_or_is_silent_shows_nothing(room: Room, content: dict[str, Any]) -> None:
    pending = Pending(room)
    pending.sent(request("execute_request", content))
    if "silent" in content:
        pending.noted("1", "busy")
    assert [kind for _, kind, _ in told(pending)] == ["execute_reply", "status"]


@pytest.mark.parametrize("name", ["complete", "inspect", "is_complete", "history", "kernel_info", "comm_info"])
def test_other_requests_get_a_reply_of_their_kind(room: Room, name: str) -> None:
    pending = Pending(room)
    pending.sent(request(f"{name}_request", channel="control"))
    (channel, kind, content), idle = told(pending)
    assert (channel, kind, content["status"], idle[1]) == ("control", f"{name}_reply", "error", "status")


@pytest.mark.parametrize("restart", [True, False], ids=["again", "for good"])
def test_a_shutdown_that_ended_the_kernel_is_what_was_asked_for(room: Room, *, restart: bool) -> None:
    pending = Pending(room)
    pending.sent(request("shutdown_request", {"restart": restart}, channel="control"))
    assert told(pending)[0] == ("control", "shutdown_reply", {"status": "ok", "restart": restart})


def test_messages_that_have_no_reply_get_idle_alone_and_input_gets_nothing(room: Room) -> None:
    pending = Pending(room)
    pending.sent(request("comm_msg"))
    pending.sent(request("input_reply", msg_id="2", channel="stdin"))
    assert [kind for _, kind, _ in told(pending)] == ["status"]


def test_only_what_is_missing_is_told(room: Room) -> None:
    pending = Pending(room)
    for number in "123":
        pending.sent(request("execute_request", msg_id=number))
        pending.noted(number, "busy")
    pending.replied("1")
    pending.noted("2", "idle")
    pending.replied("3")
    pending.noted("3", "idle")
    owed = [(channel, message.parent_id) for channel, message in pending.answers(CODEC, WHY)]
    assert owed == [("iopub", "1"), ("shell", "2")]


def test_what_is_kept_of_a_flood_is_bounded(room: Room) -> None:
    pending = Pending(room)
    for number in range(5000):
        pending.sent(request("execute_request", msg_id=str(number)))
    pending.sent(request("execute_request", {"code": "x" * 1_000_000}, msg_id="long"))
    assert 500_000 < room.held <= 1_100_000
    pending.clear()
    assert room.held == 0


def test_nothing_is_kept_of_a_request_where_its_header_is_long(room: Room) -> None:
    pending = Pending(room)
    pending.sent(request("execute_request", msg_id="x" * 100_000))
    assert told(pending) == []
