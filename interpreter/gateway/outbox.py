"""What waits to be sent to one Jupyter client: bounded by bytes, and kept for a while when the client is away."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import GuestMisbehaved, KernelDied, TooLarge
from interpreter.events import OUTPUT_TYPES
from interpreter.kernel.memory import Room
from interpreter.kernel.message import RawMessage
from interpreter.picture import Picture

_STALLED_SECONDS: Final = 30.0
"""How long the kernel waits for a client that takes nothing before it goes on without that client."""
_KEPT_TYPES: Final = frozenset({"status", "execute_input", "clear_output"})
"""Output that says where the kernel is: kept, as replies are, when there is no room for all."""

_MESSAGE_BYTES: Final = 2000
"""What a message takes besides its parts, about."""

Item = tuple[str, RawMessage]


class Outbox:
    """A queue of messages for one client.

    While the client is there, who puts messages in waits for room, and so on back to the kernel: nothing is lost.
    While it is away nobody waits, and what it would not show any more when it is back (see `Picture`) goes; past
    ``limit`` bytes output is left out, and ``cut`` is put in its place. So it is when the ``room``, which is shared
    with others, is taken.
    """

    def __init__(
        self, limit: int, room: Room, cut: Callable[[RawMessage], RawMessage], on_stalled: Callable[[], None]
    ) -> None:
        self.present = False
        self._limit = limit
        self._room = room
        self._cut = cut
        self._on_stalled = on_stalled
        self._returned: deque[Item] = deque()
        self._items: dict[int, Item] = {}
        self._next = 0
        self._parent: str | None = None
        self._picture = Picture()
        self._size = 0
        self._is_cut = False
        self.closed = False
        self._changed = asyncio.Condition()

    async def put(self, channel: str, message: RawMessage) -> None:
        """Add a message; waits for room while the client is there."""
        async with self._changed:
            if self.present and not self._has_room(message):
                try:
                    async with deadline(_STALLED_SECONDS):
                        await self._changed.wait_for(lambda: self.closed or not self.present or self._has_room(message))
                except TimeoutError:
                    self.present = False
                    self._on_stalled()
            if self.closed:
                return
            if not self.present and channel == "iopub" and message.type in OUTPUT_TYPES:
                self._supersede(message)
            if self._has_room(message):
                self._add(channel, message)
            else:
                self._leave_out(channel, message)
            self._changed.notify_all()

    async def get(self) -> Item:
        """The next message, in the order in which they came on their channel. Raises KernelDied after the last."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._has_items or self.closed)
            if not self._has_items:
                raise KernelDied("the kernel is gone")
            item = self._returned.popleft() if self._returned else self._items.pop(next(iter(self._items)))
            self._count(-_cost(item[1]))
            self._is_cut = self._is_cut and self._has_items
            self._changed.notify_all()
            return item

    async def give_back(self, item: Item) -> None:
        """Put a message that could not be sent where it was, in front."""
        async with self._changed:
            self._returned.appendleft(item)
            self._count(_cost(item[1]))
            self._changed.notify_all()

    async def set_present(self, present: bool) -> None:
        """The client came or went."""
        async with self._changed:
            self.present = present
            self._parent = None
            self._changed.notify_all()

    async def close(self) -> None:
        """Nothing comes any more; what is there can still be taken."""
        async with self._changed:
            self.closed = True
            self._changed.notify_all()

    def forget(self) -> None:
        """What is there is not taken any more."""
        self._items.clear()
        self._returned.clear()
        self._count(-self._size)

    @property
    def _has_items(self) -> bool:
        return bool(self._items or self._returned)

    def _supersede(self, message: RawMessage) -> None:
        if message.parent_id != self._parent:
            self._parent, self._picture = message.parent_id, Picture()
        try:
            content = message.content()
        except (TooLarge, GuestMisbehaved):
            content = {}
        for number in self._picture.place(self._next, message.type, content):
            if (item := self._items.pop(number, None)) is not None:
                self._count(-_cost(item[1]))

    def _has_room(self, message: RawMessage) -> bool:
        # One message alone always passes, however long.
        cost = _cost(message)
        return not self._has_items or (self._size + cost <= self._limit and self._room.fits(cost))

    def _count(self, size: int) -> None:
        self._size += size
        if size > 0:
            self._room.take(size)
        else:
            self._room.give_back(-size)

    def _add(self, channel: str, message: RawMessage) -> None:
        self._items[self._next] = channel, message
        self._next += 1
        self._count(_cost(message))

    def _leave_out(self, channel: str, message: RawMessage) -> None:
        # These have as much room again for themselves.
        is_kept = channel != "iopub" or message.type in _KEPT_TYPES
        if is_kept and self._size + _cost(message) <= 2 * self._limit:
            self._add(channel, message)
        elif not self._is_cut:
            self._is_cut = True
            self._add("iopub", self._cut(message))
        else:
            self._picture.leave_out(self._next)


def _cost(message: RawMessage) -> int:
    return message.size + _MESSAGE_BYTES
