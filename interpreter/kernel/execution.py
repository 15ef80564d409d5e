"""One execution: code sent to the kernel, outputs while they come, the result at the end."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from interpreter.deadline import deadline
from interpreter.errors import ExecutionTimeout, GuestMisbehaved, GuestRefused, GuestUnresponsive
from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.connection import Inbox, KernelConnection
from interpreter.kernel.message import LEFT_OUT, Message
from interpreter.kernel.outputs import DisplayData, Error, Output, Result, output_of

OnInput = Callable[[str, bool], Awaitable[str]]
"""Answers the code's ``input()``: gets the prompt and whether the answer is a password."""

REPLY_GRACE: Final = 5.0
"""Seconds to wait for the reply after the kernel is idle: an interrupt at the wrong moment loses the reply."""
INTERRUPT_GRACE: Final = 5.0
"""Seconds that interrupted code may take to end before the kernel is restarted. While the interrupt cannot reach the
code, or the kernel writes its traceback, they do not count,"""
INTERRUPT_LIMIT: Final = 60.0
"""but no more than so many seconds in all."""
_LOOK_SECONDS: Final = 0.5


class KernelControl(Protocol):
    """What an execution that ran out of time needs of the session that it belongs to."""

    async def interrupt(self) -> None:
        """Interrupt the code that runs now."""
        ...

    async def is_ending(self) -> bool:
        """Whether the kernel has got on, since it was last asked, with what comes before or after an interrupt."""
        ...

    async def restart(self) -> None:
        """Replace the kernel by a new one."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutionOptions:
    """How code is run."""

    silent: bool = False
    """Whether nothing is shown of it but its error, and it does not count."""
    store_history: bool = True
    stop_on_error: bool = True
    """Whether an exception makes the kernel abort the requests that wait behind this one."""
    timeout: float | None = None
    """In seconds. Past it the code is interrupted,"""
    interrupt_grace: float = INTERRUPT_GRACE
    """and when that does not help within so many seconds the kernel is restarted."""
    on_input: OnInput | None = None
    keep_outputs: bool = True
    """Whether the Result holds also what was iterated over."""


class Execution:
    """Code that runs when this is awaited (for the Result) or iterated over (for the outputs). Once."""

    def __init__(
        self,
        connection: KernelConnection,
        control: KernelControl,
        code: str,
        options: ExecutionOptions,
    ) -> None:
        self._connection = connection
        self._control = control
        self._options = options
        self._outputs: list[Output] = []
        self._failed = False
        self._reply: dict[str, Any] | None = None
        self._request = connection.codec.request(
            "execute_request",
            {
                "code": code,
                "silent": options.silent,
                "store_history": options.store_history and not options.silent,
                "user_expressions": {},
                "allow_stdin": options.on_input is not None,
                "stop_on_error": options.stop_on_error,
            },
        )
        self.begun = asyncio.Event()
        """Set once the kernel is at it: an interrupt before that would be ignored."""
        self.has_left_out = False
        """Whether an output was too much, and a line on stderr stands in its place."""
        self._sign_of_life = "status" if options.silent else "execute_input"
        self._asking: asyncio.Task[None] | None = None
        self._started = False
        self._result: Result | None = None

    def __await__(self) -> Generator[Any, None, Result]:
        return self.result().__await__()

    def __aiter__(self) -> AsyncIterator[Output]:
        return self._run()

    async def result(self) -> Result:
        """The result. Runs the code to its end unless that was iterated over already.

        Raises KernelDied, ExecutionTimeout, GuestMisbehaved.
        """
        if self._result is None:
            async for _ in self._run():
                pass
        if self._result is None:
            raise RuntimeError("the iteration over this execution was left before its end")
        return self._result

    async def _run(self) -> AsyncGenerator[Output, None]:
        if self._started:
            raise RuntimeError("an execution runs once; make another one")
        self._started = True
        deadline = None if self._options.timeout is None else asyncio.get_running_loop().time() + self._options.timeout
        with self._connection.replies(self._request) as inbox:
            try:
                try:
                    await self._connection.send("shell", self._request)
                finally:
                    # It may be long, and is not needed any more, whether or not it went out.
                    self._request.content.clear()
                idle = False
                while not (idle and self._reply is not None):
                    try:
                        async with asyncio.timeout_at(deadline):
                            channel, message = await inbox.get()
                    except TimeoutError:
                        if idle:
                            break
                        raise await self._out_of_time(inbox) from None
                    self._note(channel, message)
                    if channel == "iopub" and message.type in OUTPUT_TYPES:
                        self.has_left_out = self.has_left_out or message.metadata.get(LEFT_OUT) is True
                        output = output_of(message)
                        self._failed = self._failed or isinstance(output, Error)
                        if self._options.keep_outputs:
                            self._outputs.append(output)
                        yield output
                    elif channel == "iopub" and message.content.get("execution_state") == "idle":
                        idle = True
                        deadline = asyncio.get_running_loop().time() + REPLY_GRACE
                    elif channel == "shell" and message.type == "execute_reply":
                        self._reply = message.content
                        for page in pages_of(self._reply):
                            if self._options.keep_outputs:
                                self._outputs.append(page)
                            yield page
                    elif channel == "stdin" and message.type == "input_request":
                        await self._stop_asking()
                        self._asking = asyncio.create_task(self._ask(message, inbox))
            finally:
                await self._stop_asking()
        self._result = self._make_result()

    def _note(self, channel: str, message: Message) -> None:
        if channel == "iopub" and message.type == self._sign_of_life:
            self.begun.set()

    async def _ask(self, request: Message, inbox: Inbox) -> None:
        # Beside the reading of messages: an interrupt or the timeout ends the code that waits for this answer.
        if (on_input := self._options.on_input) is None:
            return
        try:
            value = await on_input(str(request.content.get("prompt", "")), bool(request.content.get("password")))
            await self._connection.send("stdin", self._connection.codec.request("input_reply", {"value": value}))
        except Exception as error:
            inbox.fail(error)

    async def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})

    def _make_result(self) -> Result:
        reply = self._reply or {}
        count = reply.get("execution_count")
        status: Literal["ok", "error", "aborted"]
        match reply.get("status", "error" if self._failed else "aborted"):
            case "ok" | "error" | "aborted" as known:
                status = known
            case other:
                raise GuestMisbehaved(f"the kernel ended an execution with status {str(other)[:40]!r}")
        if status == "error" and not self._failed:
            # A silent execution publishes no error; its reply carries it.
            self._outputs.append(output_of_reply(reply))
        return Result(status=status, execution_count=count if isinstance(count, int) else None, outputs=self._outputs)

    async def _out_of_time(self, inbox: Inbox) -> ExecutionTimeout:
        what = f"the code did not end within {round(self._options.timeout or 0, 3):g} s"
        try:
            with contextlib.suppress(TimeoutError):
                async with deadline(self._options.interrupt_grace):
                    while not self.begun.is_set():
                        self._note(*await inbox.get())
            await self._control.interrupt()
            if await self._ends(inbox):
                hint = "It was interrupted; the kernel keeps its variables"
                return ExecutionTimeout(what, hint=hint, kernel_restarted=False)
            why = "did not end when it was interrupted"
        except (GuestUnresponsive, GuestRefused) as error:
            why = f"could not be interrupted ({error.message})"
        await self._control.restart()
        hint = f"It {why}, so the kernel was restarted and its variables are gone; files are kept"
        return ExecutionTimeout(what, hint=hint, kernel_restarted=True)

    async def _ends(self, inbox: Inbox) -> bool:
        """Whether interrupted code ends in the time that it has for that."""
        ended, given_up = asyncio.create_task(_idle(inbox)), asyncio.create_task(self._patience())
        try:
            await asyncio.wait({ended, given_up}, timeout=INTERRUPT_LIMIT, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
            return ended.done()
        finally:
            for task in (ended, given_up):
                task.cancel()
            await asyncio.wait({ended, given_up})

    async def _patience(self) -> None:
        """Return when the code has had its time."""
        clock = asyncio.get_running_loop().time
        left, before = self._options.interrupt_grace, clock()
        while left > 0:
            await asyncio.sleep(min(left, _LOOK_SECONDS))
            ending, now = await self._control.is_ending(), clock()
            left -= 0 if ending else now - before
            before = now


async def _idle(inbox: Inbox) -> None:
    while True:
        channel, message = await inbox.get()
        if channel == "iopub" and message.content.get("execution_state") == "idle":
            return


def pages_of(reply: dict[str, Any]) -> list[Output]:
    """What the code showed in a pager, as ``len?`` does: it comes with the reply, and front ends show it as output."""
    payloads: list[Any]
    match reply:
        case {"payload": [*payloads]}:
            pages = [payload["data"] for payload in payloads if _is_page(payload)]
            return [DisplayData(data=data) for data in pages]
        case _:
            return []


def _is_page(payload: Any) -> bool:
    match payload:
        case {"source": "page", "data": dict()}:
            return True
        case _:
            return False


def output_of_reply(reply: dict[str, Any]) -> Error:
    """The error in an execute_reply. Raises GuestMisbehaved when it has none."""
    match reply:
        case {"ename": str(ename), "evalue": str(evalue), "traceback": [*lines]}:
            return Error(ename=ename, evalue=evalue, traceback=[str(line) for line in lines])
        case _:
            raise GuestMisbehaved("the kernel ended an execution with an error that it does not name")
