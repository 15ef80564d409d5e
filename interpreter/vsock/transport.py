"""What the transports on a stream's way have in common: their protocol, and when it is told to stop writing.

Both ends see one: the process of the device, where the guest's credit bounds what goes on, and the service.
"""

import asyncio
from collections.abc import Iterable
from typing import cast


class BufferingTransport(asyncio.Transport):
    """A transport that holds what it cannot send yet, and tells its protocol to pause above the high-water mark."""

    def __init__(self, protocol: asyncio.Protocol, high_water: int, low_water: int) -> None:
        super().__init__()
        self._protocol = protocol
        self._default_high = self._high = high_water
        self._low = low_water
        self._paused_writing = False
        self._write_eof = False
        self._closing = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """See asyncio."""
        self._protocol = cast("asyncio.Protocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See asyncio."""
        return self._protocol

    def is_closing(self) -> bool:
        """See asyncio."""
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio."""
        if high is None:
            high = self._default_high if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high, as asyncio has it."""
        return self._low, self._high

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """See asyncio."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """See asyncio."""
        return True

    def _has_grown(self) -> None:
        # More waits to be sent.
        if not self._paused_writing and self.get_write_buffer_size() > self._high:
            self._paused_writing = True
            self._protocol.pause_writing()

    def _has_shrunk(self) -> None:
        if self._paused_writing and self.get_write_buffer_size() <= self._low:
            self._paused_writing = False
            self._protocol.resume_writing()
