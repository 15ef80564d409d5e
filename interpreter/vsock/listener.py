"""Streams that the guest opens, until somebody takes them."""

import asyncio
from typing import Final

from interpreter.errors import InterpreterError

BACKLOG: Final = 64


class Listener:
    """The streams that the guest opens to one port, in order. Made by ``VsockDevice.listen``."""

    def __init__(self, backlog: int) -> None:
        self._waiting: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter, int] | InterpreterError] = (
            asyncio.Queue()
        )
        self._backlog = backlog

    async def accept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """The next stream, and the guest's port at its other end. Raises the device's failure once it is closed."""
        item = await self._waiting.get()
        if isinstance(item, InterpreterError):
            self._waiting.put_nowait(item)
            raise item
        return item

    @property
    def full(self) -> bool:
        """Whether so many streams wait for ``accept`` that the guest's next request is refused."""
        return self._waiting.qsize() >= self._backlog

    def put(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        """For the device: a stream was opened."""
        self._waiting.put_nowait((reader, writer, port))

    def fail(self, error: InterpreterError) -> None:
        """For the device: no stream will come any more."""
        self._waiting.put_nowait(error)

    def drop_waiting(self) -> None:
        """For the device: reset what nobody accepted."""
        while not self._waiting.empty():
            item = self._waiting.get_nowait()
            if not isinstance(item, InterpreterError):
                item[1].transport.abort()
