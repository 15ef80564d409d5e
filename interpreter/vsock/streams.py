"""A vsock connection as an asyncio transport, with flow control in both directions.

Reading: while the protocol has paused reading, what comes is held here and the guest gets no credit for it, so at
most one window is held. Writing: bytes wait in the connection until the guest has given credit and receive buffers;
above the high-water mark the protocol is told to pause, which is what ``StreamWriter.drain`` waits on.
"""

import asyncio
from typing import Final, Protocol

from interpreter.vsock.connection import Connection, State
from interpreter.vsock.device import DeviceProtocol
from interpreter.vsock.linger import Linger
from interpreter.vsock.packet import HOST_CID
from interpreter.vsock.transport import BufferingTransport

HIGH_WATER: Final = 512 * 1024
LOW_WATER: Final = 128 * 1024


class Device(Protocol):
    """What a transport needs of its device."""

    protocol: DeviceProtocol

    def flush_soon(self) -> None:
        """Send what wants to be sent, within this turn of the loop."""
        ...

    def release(self, connection: Connection) -> None:
        """No event will come for this connection any more."""
        ...


class VsockTransport(BufferingTransport):
    """One connection. Made by the device; methods whose names start with ``on_`` are for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, device: Device, connection: Connection, protocol: asyncio.Protocol
    ) -> None:
        super().__init__(protocol, HIGH_WATER, LOW_WATER)
        self._extra = {
            "peername": (device.protocol.guest_cid, connection.peer_port),
            "sockname": (HOST_CID, connection.local_port),
        }
        self._loop = loop
        self._device = device
        self._core = device.protocol
        self._connection = connection
        self._held = bytearray()
        self._reading = True
        self._eof = False
        self._eof_told = False
        self._lost: list[Exception | None] = []
        self._closed = False
        self._linger = Linger(loop, self.get_write_buffer_size, self.abort)

    # asyncio.BaseTransport

    def close(self) -> None:
        """Send what was written, then end both directions. A guest that takes none of it is reset in the end."""
        if self._closing:
            return
        self._closing = True
        self._discard_held()
        self._core.close(self._connection)
        if self._connection.state is State.CLOSED:
            self._device.release(self._connection)
            self._finish_soon(None)
        else:
            self._linger.start()
        self._device.flush_soon()

    def abort(self) -> None:
        """Reset the connection; what was not sent is lost."""
        self._closing = True
        self._discard_held()
        self._core.abort(self._connection)
        self._device.release(self._connection)
        self._linger.stop()
        self._finish_soon(None)
        self._device.flush_soon()

    def expect_end(self) -> None:
        """It will be closed when all that is on its way here has come; a guest that takes none of it is reset."""
        self._linger.start()

    # asyncio.ReadTransport

    def is_reading(self) -> bool:
        """See asyncio."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Stop giving data to the protocol, and credit to the guest."""
        self._reading = False

    def resume_reading(self) -> None:
        """See asyncio."""
        if not self._reading:
            self._reading = True
            if self._held or self._eof or self._lost:
                self._loop.call_soon(self._deliver)

    # asyncio.WriteTransport

    def get_write_buffer_size(self) -> int:
        """Bytes that were not put into the guest's buffers yet."""
        return self._connection.unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio."""
        if self._write_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing:
            return
        self._core.write(self._connection, bytes(data))
        self._has_grown()
        self._device.flush_soon()

    def write_eof(self) -> None:
        """Send what was written, then tell the guest that nothing more comes."""
        if not self._closing and not self._write_eof:
            self._write_eof = True
            self._core.shut(self._connection)
            self._device.flush_soon()

    # For the device.

    def on_open(self) -> None:
        """The connection is established."""
        self._protocol.connection_made(self)

    def on_data(self, data: bytes) -> None:
        """Data came."""
        if self._closing:
            self._core.consume(self._connection, len(data))
        elif self._reading and not self._held:
            self._core.consume(self._connection, len(data))
            self._protocol.data_received(data)
        else:
            # In one piece: a guest that sends single bytes must not make the host hold an object for each.
            self._held += data

    def on_eof(self) -> None:
        """The guest sends nothing more."""
        self._eof = True
        self._deliver()

    def on_progress(self) -> None:
        """Some of what was written has gone out."""
        self._has_shrunk()

    def on_shutdown_sent(self) -> None:
        """After ``close``: all that was written has gone out."""
        self._finish_soon(None)

    def on_closed(self, cause: str | None) -> None:
        """The connection is over."""
        if cause is not None:
            # As with TCP: a reset does not wait for the reader.
            self._discard_held()
            self._finish_soon(ConnectionResetError(cause))
        elif self._closing:
            self._finish_soon(None)
        else:
            self._lost.append(None)
            self._deliver()
        self._linger.stop()

    def _deliver(self) -> None:
        if self._held and self._reading and not self._closing:
            data = bytes(self._held)
            self._held.clear()
            self._core.consume(self._connection, len(data))
            self._protocol.data_received(data)
        self._device.flush_soon()
        if self._held or self._closing:
            return
        if self._eof and not self._eof_told:
            self._eof_told = True
            if not self._protocol.eof_received():
                self.close()
        if self._lost:
            self._finish_soon(self._lost.pop())

    def _discard_held(self) -> None:
        self._core.consume(self._connection, len(self._held))
        self._held.clear()

    def _finish_soon(self, error: Exception | None) -> None:
        self._closing = True
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
