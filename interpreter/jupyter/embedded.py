"""Kernels whose machines run on this host, with no service: one engine for all of a process."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from interpreter.engine.engine import Engine
from interpreter.engine.kernel import OnChange
from interpreter.engine.session import Session
from interpreter.jupyter.guests import Wanted
from interpreter.kernel.splicing import ByteStream, open_splice


class EmbeddedGuests:
    """Restores sessions with an engine that is opened when the first one is wanted."""

    def __init__(self) -> None:
        self._opened = AsyncExitStack()
        self._engine: Engine | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def kernel(self, wanted: Wanted, on_change: OnChange) -> AsyncGenerator["EmbeddedKernel"]:
        """See `Guests`."""
        async with self._opening:
            if self._engine is None:
                self._engine = await self._opened.enter_async_context(Engine())
        restored = self._engine.session(wanted.template, environment=wanted.environment, key=wanted.key)
        async with restored as session:
            session.main.watchers.append(on_change)
            yield EmbeddedKernel(session)

    async def close(self) -> None:
        """See `Guests`."""
        self._engine = None
        await self._opened.aclose()


class EmbeddedKernel:
    """The main kernel of a session of this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def stream(self, channel: str) -> AbstractAsyncContextManager[ByteStream]:
        """See `GuestKernel`."""
        return open_splice(self._session.vsock.connect, channel)

    async def interrupt(self) -> None:
        """See `GuestKernel`."""
        await self._session.interrupt()

    async def restart(self) -> None:
        """See `GuestKernel`."""
        await self._session.restart()
