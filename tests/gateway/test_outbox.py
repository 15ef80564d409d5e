"""What waits for one Jupyter client: order, room, what is left out while it is away, and the end."""

import asyncio
from collections.abc import Callable

import pytest

from interpreter.errors import KernelDied
from interpreter.gateway.outbox import Outbox
from interpreter.kernel.memory import Room
from interpreter.kernel.message import Codec, RawMessage

CODEC = Codec(b"key", "session")
LIMIT = 100_000


def output(text: str, msg_type: str = "stream") -> RawMessage:
    return CODEC.notice(msg_type, {"text": text}, {"msg_id": "parent"})


def outbox(on_stalled: list[str] | None = None, room: Room | None = None) -> Outbox:
    return Outbox(
        LIMIT,
        room or Room(10 * LIMIT),
        lambda message: CODEC.notice("stream", {"text": "cut"}, message.parent),
        lambda: (on_stalled if on_stalled is not None else []).append("stalled"),
    )


async def texts(box: Outbox) -> list[str]:
    await box.close()
    got: list[str] = []
    with pytest.raises(KernelDied):
        while True:
            got.append((await box.get())[1].content()["text"])
    return got


async def test_messages_come_out_in_the_order_in_which_they_went_in() -> None:
    box = outbox()
    for n in range(10):
        await box.put("iopub", output(str(n)))
    assert await texts(box) == [str(n) for n in range(10)]


async def test_while_the_client_is_there_who_puts_waits_and_nothing_is_lost() -> None:
    box = outbox()
    await box.set_present(True)

    async def fill() -> None:
        for n in range(50):
            await box.put("iopub", output(f"{n}".rjust(10_000)))

    filling = asyncio.create_task(fill())
    await asyncio.sleep(0)
    got = []
    for _ in range(50):
        assert not filling.done() or len(got) >= 40
        got.append(int((await box.get())[1].content()["text"]))
    await filling
    assert got == list(range(50))


async def test_one_message_longer_than_all_the_room_passes_alone() -> None:
    box = outbox()
    await box.set_present(True)
    await box.put("iopub", output("x" * LIMIT * 3))
    assert await texts(box) == ["x" * LIMIT * 3]


async def test_while_it_is_away_output_is_cut_once_and_where_the_kernel_is_stays_told() -> None:
    box = outbox()
    for n in range(30):
        await box.put("iopub", output(f"{n}".rjust(10_000)))
    await box.put("shell", output("reply", "execute_reply"))
    await box.put("iopub", output("idle", "status"))
    got = await texts(box)
    kept = [text for text in got if text.strip().isdecimal()]
    assert 0 < len(kept) < 30
    assert [int(text) for text in kept] == list(range(len(kept)))
    assert got[len(kept) :] == ["cut", "reply", "idle"]


async def test_what_is_kept_while_it_is_away_has_a_bound_of_its_own() -> None:
    box = outbox()
    for _ in range(1000):
        await box.put("iopub", output("busy", "status"))
    assert len(await texts(box)) < 100


async def test_one_who_leaves_lets_those_go_on_who_wait_for_room() -> None:
    box = outbox()
    await box.set_present(True)
    await box.put("iopub", output("x" * LIMIT))
    waiting = asyncio.create_task(box.put("iopub", output("y" * 10_000)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await box.set_present(False)
    async with asyncio.timeout(10):
        await waiting


async def test_one_who_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpreter.gateway.outbox._STALLED_SECONDS", 0.01)
    stalled: list[str] = []
    box = outbox(stalled)
    await box.set_present(True)
    await box.put("iopub", output("x" * LIMIT))
    await box.put("iopub", output("y" * 10_000))
    assert stalled == ["stalled"]
    assert not box.present


async def test_what_could_not_be_sent_comes_first_again() -> None:
    box = outbox()
    await box.put("iopub", output("1"))
    await box.put("iopub", output("2"))
    await box.give_back(await box.get())
    assert await texts(box) == ["1", "2"]


async def test_the_end_wakes_who_waits_on_either_side() -> None:
    box = outbox()
    getting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    await box.close()
    with pytest.raises(KernelDied):
        await getting
    full = outbox()
    await full.set_present(True)
    await full.put("iopub", output("x" * LIMIT))
    putting = asyncio.create_task(full.put("iopub", output("y")))
    await asyncio.sleep(0)
    await full.close()
    async with asyncio.timeout(10):
        await putting


async def test_clients_that_are_away_keep_no_more_than_their_session_may_hold() -> None:
    room = Room(2 * LIMIT)
    boxes = [outbox(room=room) for _ in range(10)]
    for box in boxes:
        for _ in range(10):
            await box.put("iopub", output("x" * (LIMIT // 20)))
    # One message always passes, and of what was left out each is told.
    assert LIMIT < room.held < 2 * LIMIT + len(boxes) * LIMIT // 10
    for box in boxes:
        box.forget()
    assert room.held == 0


def shown(text: str, kind: str = "display_data") -> RawMessage:
    content = {"text": text, "data": {}, "transient": {"display_id": "i"}, "name": "stderr", "wait": True}
    return CODEC.notice(kind, content, {"msg_id": "parent"})


@pytest.mark.parametrize(
    "frame",
    [
        lambda n: [shown(f"clear {n}", "clear_output"), shown(f"{n}" + " " * 10_000)],
        lambda n: [shown(f"{n}", "update_display_data")],
        lambda n: [shown(f"\r{n:6}", "stream")],
    ],
    ids=["drawn anew", "updated", "written over"],
)
async def test_what_is_not_shown_any_more_takes_no_room_while_it_is_away(
    frame: Callable[[int], list[RawMessage]],
) -> None:
    room = Room(10 * LIMIT)
    box = outbox(room=room)
    await box.put("iopub", output("before", "status"))
    for number in range(5000):
        for message in frame(number):
            await box.put("iopub", message)
        assert room.held < 30_000
    await box.put("iopub", output("result", "execute_result"))
    got = await texts(box)
    assert "cut" not in got
    assert [text.strip() for text in got][-2:] == ["4999", "result"]


async def test_a_clear_makes_room_again_where_output_was_left_out() -> None:
    box = outbox()
    for n in range(30):
        await box.put("iopub", output(f"{n}".rjust(10_000)))
    await box.put("iopub", shown("", "clear_output"))
    await box.put("iopub", output("after"))
    got = await texts(box)
    assert got[-1] == "after"
    assert len(got) < 5


async def test_what_was_there_before_it_left_is_never_taken_back() -> None:
    box = outbox()
    await box.set_present(True)
    await box.put("iopub", shown("1"))
    await box.put("iopub", shown("clear", "clear_output"))
    await box.set_present(False)
    await box.put("iopub", shown("2"))
    assert await texts(box) == ["1", "clear", "2"]
