"""One MCP session's interpreter session: made when it is first needed, replaced when it is over."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final, TypeVar

from interpreter.client import AsyncClient, AsyncSession
from interpreter.errors import Conflict, InterpreterError, NotFound
from interpreter.store.records import State

REPLACED: Final = (
    "[A new sandbox was started because the last one is over: earlier variables and files are gone. "
    "Run imports and upload files again.]"
)
_OVER: Final = frozenset({State.STOPPING, State.STOPPED, State.FAILED})

T = TypeVar("T")


class Sandbox:
    """The session behind the tools of one MCP session.

    ``notices`` of a call are told to the model with its result.
    """

    def __init__(self, connect: Callable[[], AsyncClient]) -> None:
        self.read_until: dict[str, int] = {}
        """Up to where the output of commands in the background has been read, by their ids."""
        self._connect = connect
        self._stack = AsyncExitStack()
        self._client: AsyncClient | None = None
        self._opening: asyncio.Task[AsyncSession] | None = None

    async def use(self, work: Callable[[AsyncSession], Awaitable[T]], notices: list[str]) -> T:
        """Do something in the session; in a new one, once, when the session turns out to be over.

        Raises what the client and ``work`` raise.
        """
        opening, session = await self._session()
        try:
            return await work(session)
        except (NotFound, Conflict):
            # The service refuses before it begins anything, so nothing has run that would now run twice.
            if not await _is_over(session):
                raise
        if self._opening is opening:
            self._opening = None
            self.read_until.clear()
        notices.append(REPLACED)
        _, session = await self._session()
        return await work(session)

    async def close(self) -> None:
        """Stop the session, when there is one; it may be over already."""
        opening, self._opening = self._opening, None
        if opening is not None:
            with contextlib.suppress(InterpreterError):
                await (await opening).stop()
        await self._stack.aclose()

    async def _session(self) -> tuple[asyncio.Task[AsyncSession], AsyncSession]:
        # A task of its own: a call that is cancelled must not leave behind a session that nobody knows of, and
        # calls that come at once wait for the same one.
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        opening = self._opening
        try:
            return opening, await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                self._opening = None
            raise

    async def _open(self) -> AsyncSession:
        if self._client is None:
            self._client = await self._stack.enter_async_context(self._connect())
        return await self._client.create_session(name="mcp", timeout_mode="idle")


async def _is_over(session: AsyncSession) -> bool:
    try:
        return (await session.info()).state in _OVER
    except NotFound:
        return True
