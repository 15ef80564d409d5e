"""The control stream: the agent tells its version before all else, or nothing is asked of it, and never too much."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from interpreter.errors import GuestMisbehaved, InterpreterError, MachineDied
from interpreter.kernel.control import AgentControl, AgentEvent, serve_control
from interpreter.rate import Rate
from kernel_guest.frames import AGENT_VERSION, Frame, Kind, encode

SECONDS = 30.0
HELLO = encode(Frame(Kind.EVENT, {"event": "hello", "version": AGENT_VERSION}))


@asynccontextmanager
async def controlled(said: bytes) -> AsyncGenerator[AgentControl]:
    """Speak with an agent that says this and then no more."""
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        ended: asyncio.Future[InterpreterError] = asyncio.get_running_loop().create_future()
        async with serve_control(reader, writer, lambda event: None, ended.set_result) as control:
            yield control
        # Its end of the stream is closed, however it went.
    assert writer.transport.is_closing()


async def test_the_version_is_known_before_anything_is_asked() -> None:
    async with controlled(HELLO) as control:
        assert control.version == AGENT_VERSION


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", MachineDied),
        (HELLO[:9], GuestMisbehaved),
        (encode(Frame(Kind.OK, {"id": 1})), GuestMisbehaved),
        (encode(Frame(Kind.EVENT, {"event": "kernel_exited"})) + HELLO, GuestMisbehaved),
        (encode(Frame(Kind.EVENT, {"event": "hello"})), GuestMisbehaved),
        (encode(Frame(Kind.EVENT, {"event": "hello", "version": "2"})), GuestMisbehaved),
        (encode(Frame(Kind.EVENT, {"event": "hello", "version": True})), GuestMisbehaved),
    ],
)
async def test_what_does_not_begin_with_a_version_is_not_spoken_with(said: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        async with controlled(said):
            pytest.fail("it was spoken with")


async def test_an_agent_that_tells_of_thousands_of_events_is_ended_after_some() -> None:
    ours, theirs = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=theirs)
    ended: asyncio.Future[InterpreterError] = asyncio.get_running_loop().create_future()
    events: list[AgentEvent] = []
    writer.write(HELLO)
    async with serve_control(*await asyncio.open_connection(sock=ours), events.append, ended.set_result):
        writer.write(encode(Frame(Kind.EVENT, {"event": "kernel_exited"})) * 40_000)
        async with asyncio.timeout(SECONDS):
            assert isinstance(await ended, GuestMisbehaved)
    assert 100 <= len(events) < 1000
    writer.close()


def test_a_rate_allows_some_at_once_and_then_so_many_a_second() -> None:
    now = 0.0
    rate = Rate(2.0, 5, lambda: now)
    assert [rate.take() for _ in range(7)] == [True] * 5 + [False] * 2
    now = 1.0
    assert [rate.take() for _ in range(3)] == [True, True, False]
    now = 100.0
    assert sum(rate.take() for _ in range(10)) == 5
