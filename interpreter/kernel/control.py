"""The control stream: calls to the guest's agent, and what it tells unasked."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

from interpreter.deadline import deadline
from interpreter.errors import GuestMisbehaved, GuestUnresponsive, InterpreterError, MachineDied
from interpreter.kernel.framing import FrameStream, error_of
from interpreter.kernel.versions import check_known, check_spoken
from interpreter.rate import Rate
from kernel_guest.frames import Kind

AgentEvent = dict[str, Any]
"""What the agent tells: that a kernel was started or has exited. Nothing in it is checked."""
_EVENTS_PER_SECOND: Final = 10.0
_EVENTS_AT_ONCE: Final = 100
"""Kernels die and start one by one. Whoever tells more than that is no agent of ours any more."""


class AgentControl:
    """Calls over one control stream; several may be under way. Made by ``serve_control``."""

    def __init__(self, stream: FrameStream, version: int, on_event: Callable[[AgentEvent], None]) -> None:
        self.version = version
        """The agent's."""
        self._stream = stream
        self._on_event = on_event
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._failure: InterpreterError | None = None
        self._rate = Rate(_EVENTS_PER_SECOND, _EVENTS_AT_ONCE)

    async def call(self, operation: str, *, timeout: float, **arguments: object) -> dict[str, Any]:
        """Ask the agent for something. Raises GuestRefused, GuestUnresponsive, MachineDied, GuestMisbehaved."""
        if self._failure is not None:
            raise self._failure.anew()
        check_known(operation, self.version)
        self._last += 1
        number = self._last
        future = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            async with deadline(timeout):
                await self._stream.send(Kind.CALL, {"id": number, "op": operation, **arguments})
                return await future
        except TimeoutError:
            raise GuestUnresponsive(f"the guest did not answer `{operation}` within {timeout:g} s") from None
        except ConnectionError as error:
            raise (self._failure or MachineDied("the machine ended")).anew() from error
        finally:
            del self._calls[number]

    async def set_clock(self, *, timeout: float) -> int:
        """Set the guest's clock to the host's; returns how far off it was afterwards, in ns."""
        answer = await self.call("clock", timeout=timeout, clock_ns=time.time_ns())
        return integer(answer, "clock_ns") - time.time_ns()

    async def receive(self) -> InterpreterError:
        """Take answers and events until the stream ends; returns why it did."""
        try:
            while True:
                frame = await self._stream.receive()
                if frame is None:
                    self._failure = MachineDied("the guest's agent ended")
                    break
                if frame.kind is Kind.EVENT:
                    if not self._rate.take():
                        raise GuestMisbehaved(f"the guest told of more than {_EVENTS_PER_SECOND:g} events a second")
                    self._on_event(frame.body)
                    continue
                self._settle(frame.kind, frame.body, error_of(frame))
        except InterpreterError as error:
            self._failure = error.anew()
        except OSError:
            self._failure = MachineDied("the machine ended")
        for future in self._calls.values():
            if not future.done():
                future.set_exception(self._failure.anew())
        return self._failure

    def _settle(self, kind: Kind, body: dict[str, Any], error: InterpreterError) -> None:
        # An answer to a call that was given up is dropped; its number is not used again.
        future = self._calls.get(integer(body, "id"))
        if future is None or future.done():
            return
        if kind is Kind.OK:
            future.set_result(body)
        else:
            future.set_exception(error)


def integer(body: dict[str, Any], key: str) -> int:
    """A whole number that the guest sent. Raises GuestMisbehaved."""
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise GuestMisbehaved(f"the guest sent no number for {key}")
    return value


@asynccontextmanager
async def serve_control(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    on_event: Callable[[AgentEvent], None],
    on_end: Callable[[InterpreterError], None],
) -> AsyncGenerator[AgentControl]:
    """Speak the control service over a stream that the guest's agent opened.

    ``on_event`` gets each event; ``on_end`` is called once, with the cause, when the stream ends by itself. Raises
    TemplateOutdated, MachineDied, GuestMisbehaved.
    """
    stream = FrameStream(reader, writer)
    try:
        control = AgentControl(stream, await _hello(stream), on_event)
    except BaseException:
        writer.transport.abort()
        raise
    task = asyncio.create_task(control.receive())
    task.add_done_callback(lambda done: None if done.cancelled() else on_end(done.result()))
    try:
        yield control
    finally:
        task.cancel()
        await asyncio.wait({task})
        writer.transport.abort()


async def _hello(stream: FrameStream) -> int:
    """The agent's version, which it tells before all else."""
    try:
        frame = await stream.receive()
    except OSError as error:
        raise MachineDied("the machine ended") from error
    if frame is None:
        raise MachineDied("the guest's agent ended")
    if frame.kind is not Kind.EVENT or frame.body.get("event") != "hello":
        raise GuestMisbehaved("the guest's agent did not begin with its version")
    version = integer(frame.body, "version")
    check_spoken(version)
    return version
