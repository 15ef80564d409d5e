"""One stream between the service and a device's process, as an asyncio transport: the same at both of its ends.

As over TCP a stream ends in good order or by a reset, and one direction may end before the other. What a unix socket
cannot say goes over the control socket, see ``wire``. Unlike asyncio's own transport this one reads to the end what
the other side has sent before it closed, also when nothing can be written any more.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from interpreter.device.control import Control
from interpreter.device.wire import Kind, Message
from interpreter.vsock.linger import Linger
from interpreter.vsock.transport import BufferingTransport

_READ: Final = 256 * 1024
"""Bytes that are read in one turn of the loop."""
HIGH_WATER: Final = 128 * 1024
LOW_WATER: Final = 32 * 1024


class StreamTransport(BufferingTransport):
    """This end of one stream. ``sock`` is its own from now on; reading begins with ``open``.

    ``on_done`` is called when the socket is closed: no message counts for it any more.
    """

    def __init__(
        self,
        control: Control,
        number: int,
        sock: socket.socket,
        protocol: asyncio.Protocol,
        on_done: Callable[[], None],
    ) -> None:
        super().__init__(protocol, HIGH_WATER, LOW_WATER)
        sock.setblocking(False)
        self.number = number
        self._loop = asyncio.get_running_loop()
        self._control = control
        self._socket = sock
        self._on_done = on_done
        self._unsent = bytearray()
        self._opened = self._reading = False
        self._deaf = False
        """The other side takes nothing any more; what is written goes nowhere."""
        self._ended = False
        """The end of what the other side sends was read."""
        self._peer_shut = self._peer_closed = False
        self._finished = False
        self._linger = Linger(self._loop, self.get_write_buffer_size, self.abort)

    def open(self, peername: tuple[int, int], sockname: tuple[int, int]) -> None:
        """The stream is there: tell the protocol and begin to read. The names are a context id and a port each."""
        self._extra = {"peername": peername, "sockname": sockname}
        self._opened = True
        self._protocol.connection_made(self)
        self.resume_reading()

    def peer_ended(self, message: Message) -> None:
        """The other side told on the control socket how it ended the stream."""
        if message.kind is Kind.RESET:
            # As with TCP: a reset does not wait for the reader.
            self._lose(ConnectionResetError(message.text))
            return
        self._peer_shut = True
        if message.kind is Kind.CLOSED:
            self._peer_closed = True
            if self._ended:
                self.close()

    # asyncio.BaseTransport

    def close(self) -> None:
        """Send what was written, then end both directions. Who takes none of it is sent a reset in the end."""
        if self._closing:
            return
        self._closing = True
        self._stop_reading()
        if self._unsent:
            self._linger.start()
        else:
            self._finish(Message(Kind.CLOSED, self.number), None)

    def abort(self) -> None:
        """Reset the stream; what was not sent is lost."""
        self.reset("it was reset")

    def reset(self, cause: str) -> None:
        """As ``abort``, and tell the other side why."""
        self._lose(None, cause)

    # asyncio.ReadTransport

    def is_reading(self) -> bool:
        """See asyncio."""
        return self._reading

    def pause_reading(self) -> None:
        """Stop giving data to the protocol; the other side can then send no more than a socket holds."""
        self._stop_reading()

    def resume_reading(self) -> None:
        """See asyncio."""
        if self._opened and not (self._reading or self._ended or self._closing):
            self._reading = True
            self._loop.add_reader(self._socket, self._readable)

    # asyncio.WriteTransport

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio."""
        if self._write_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self._closing or self._deaf:
            return
        view = memoryview(data)
        if not self._unsent:
            view = view[self._send(view) :]
            if not view or self._deaf:
                return
            self._loop.add_writer(self._socket, self._writable)
        self._unsent += view
        self._has_grown()

    def write_eof(self) -> None:
        """Send what was written, then tell the other side that nothing more comes."""
        if not self._write_eof and not self._closing:
            self._write_eof = True
            if not self._unsent:
                self._end_writing()

    # The socket

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            # It was closed with bytes of ours unread; what it had sent is read by now.
            data = b""
            self._stop_sending()
        if data:
            self._protocol.data_received(data)
            return
        self._ended = True
        self._stop_reading()
        # How it ended was told before it ended.
        self._control.drain()
        if self._closing:
            return
        if not self._peer_shut:
            self._lose(ConnectionResetError("the other end of the stream is gone"))
            return
        stays = self._protocol.eof_received()
        if self._peer_closed or not stays:
            self.close()

    def _send(self, data: memoryview) -> int:
        try:
            return self._socket.send(data[:_READ])
        except BlockingIOError:
            return 0
        except OSError:
            # The other side is gone, or takes no more; why, is what reading tells.
            self._stop_sending()
            return 0

    def _writable(self) -> None:
        sent = self._send(memoryview(self._unsent))
        del self._unsent[:sent]
        if self._unsent:
            self._has_shrunk()
            return
        self._loop.remove_writer(self._socket)
        self._has_shrunk()
        if self._closing:
            self._finish(Message(Kind.CLOSED, self.number), None)
        elif self._write_eof:
            self._end_writing()

    def _stop_sending(self) -> None:
        self._deaf = True
        self._unsent = bytearray()
        self._loop.remove_writer(self._socket)
        self._has_shrunk()
        if self._closing:
            self._finish(Message(Kind.CLOSED, self.number), None)

    def _end_writing(self) -> None:
        self._control.send(Message(Kind.SHUT, self.number), sent=self._shut_socket)

    def _shut_socket(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._deaf = True

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _lose(self, error: ConnectionResetError | None, cause: str = "") -> None:
        self._closing = True
        self._unsent = bytearray()
        self._finish(Message(Kind.RESET, self.number, text=cause), error)

    def _finish(self, last: Message, error: ConnectionResetError | None) -> None:
        if self._finished:
            return
        self._finished = True
        self._linger.stop()
        self._stop_reading()
        self._loop.remove_writer(self._socket)
        if error is not None or (self._ended and self._peer_closed):
            # The other side has let go of it; nothing has to be told.
            self._close_socket()
        else:
            self._control.send(last, sent=self._close_socket)
        self._loop.call_soon(self._tell_lost, error)

    def _close_socket(self) -> None:
        self._socket.close()
        self._on_done()

    def _tell_lost(self, error: ConnectionResetError | None) -> None:
        self._protocol.connection_lost(error)
