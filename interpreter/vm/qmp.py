"""QMP, QEMU's control protocol, through the qemu.qmp package; its errors as ours."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, cast

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError

from interpreter.errors import MachineDied, MachineError

_MESSAGE: Final = 512 * 1024
"""Longest message that is taken. The longest that is asked for, a guest's console, has 64 KiB before it is escaped."""

_ATTEMPTS: Final = 3
_GONE: Final = (QMPError, OSError, EOFError, ValueError)
"""What the package raises when QEMU is gone, or says what is no message; the last of a message that is too long."""


class _Client(QMPClient):
    """The package's client, for a QEMU that may be the guest's: little is read at once, and nothing is kept unasked."""

    def __init__(self) -> None:
        super().__init__("machine", readbuflen=_MESSAGE)
        # This listener would keep all events for ever, and nobody asks it.
        self.events.event_filter = lambda _: False

    async def _on_message(self, msg: Message) -> None:
        await super()._on_message(msg)
        # A QEMU that talks without end gets one message each turn of the loop.
        await asyncio.sleep(0)


class Qmp:
    """One QMP session. Made by ``connect_qmp``."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a command and return its answer. Raises MachineError when QEMU refuses, MachineDied when it is gone."""
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise MachineError(f"QEMU refused {command}: {error}") from None
        except _GONE as error:
            raise MachineDied(f"QEMU ended during {command}") from error

    async def send_descriptor(self, descriptor: int, name: str) -> None:
        """Give QEMU a copy of an open descriptor under a name (QEMU's getfd)."""
        self._client.send_fd_scm(descriptor)
        await self.execute("getfd", fdname=name)

    async def migrate(self, uri: str, *, incoming: bool = False) -> None:
        """Save to or load from ``uri`` without the memory that is shared, and wait until that is over."""
        capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        await self.execute("migrate-set-capabilities", capabilities=capabilities)
        listener = EventListener("MIGRATION")
        with self._client.listen(listener):
            await self.execute("migrate-incoming" if incoming else "migrate", uri=uri)
            while True:
                event = await self._next_event(listener)
                match cast("dict[str, Any]", event["data"]).get("status"):
                    case "completed":
                        return
                    case "failed" | "cancelled":
                        raise MachineError(f"QEMU could not {'load' if incoming else 'save'} the snapshot")
                    case _:
                        continue

    async def _next_event(self, listener: EventListener) -> Message:
        # A listener waits for ever when QEMU goes away, so the session's own end is awaited beside it.
        async with asyncio.TaskGroup() as group:
            event = group.create_task(listener.get())
            ended = group.create_task(self._client.runstate_changed())
            await asyncio.wait({event, ended}, return_when=asyncio.FIRST_COMPLETED)
            for task in (event, ended):
                task.cancel()
        if event.cancelled():
            raise MachineDied("QEMU ended during a migration")
        return event.result()


@asynccontextmanager
async def connect_qmp(channel: socket.socket) -> AsyncGenerator[Qmp]:
    """Hold a QMP session over a connected socket, which it takes over. Raises MachineDied."""
    client = _Client()
    # Each caller is told by an error of ours; the package would print it as well.
    client.logger.disabled = True
    try:
        try:
            await client.connect(channel)
        except _GONE as error:
            raise MachineDied("QEMU ended before it answered") from error
        yield Qmp(client)
    finally:
        try:
            await client.disconnect()
        except _GONE:
            # QEMU went first; there is nothing left to close on its side.
            channel.close()


async def take_over_qmp(stack: AsyncExitStack, connect: Callable[[], socket.socket]) -> Qmp:
    """A QMP session with a QEMU that another service had to do with, until ``stack`` is left. Raises MachineDied.

    What the other had asked for may be answered, or told of, in place of the answer to the first greeting.
    """
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(MachineDied):
            return await stack.enter_async_context(connect_qmp(connect()))
    return await stack.enter_async_context(connect_qmp(connect()))
