"""The control stream's beginning: the agent tells its version before all else, or nothing is asked of it."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from interpreter.errors import GuestMisbehaved, InterpreterError, MachineDied
from interpreter.kernel.control import AgentControl, serve_control
from kernel_guest.frames import AGENT_VERSION, Frame, Kind, encode

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
