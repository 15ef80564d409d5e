"""The control socket of one device, at either end: messages out, in their order, and messages in.

Neither end ever waits for the other: what cannot be sent now is kept, up to a bound, and sent when there is room.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from interpreter.device.wire import MAX_MESSAGE, Message, parse
from interpreter.errors import InterpreterError, VsockError

_MESSAGES: Final = 64
"""Messages that are read in one turn of the loop."""
_QUEUED: Final = 1024
"""Messages that wait for the other end to read."""

OnMessage = Callable[[Message, socket.socket | None], None]
Sent = Callable[[], None]


class Control:
    """One end of the socket, which is closed by ``close``.

    ``on_message`` gets each message, with the stream's end that came with it; ``on_end`` is told once why there will be
    no more. With ``takes_descriptors`` one may come with each message; else those that come are never received.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: OnMessage,
        on_end: Callable[[InterpreterError], None],
        *,
        takes_descriptors: bool,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_end = on_end
        self._takes_descriptors = takes_descriptors
        self._queue: deque[tuple[bytes, socket.socket | None, Sent | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)
        self._open = True

    def send(self, message: Message, passed: socket.socket | None = None, sent: Sent | None = None) -> None:
        """Send a message, with a descriptor that is closed afterwards; ``sent`` is called when it has left.

        When the other end is gone it has left, too.
        """
        self._queue.append((message.pack(), passed, sent))
        if not self._open:
            self._drop_queue()
        elif len(self._queue) == 1:
            self._flush()
        elif len(self._queue) > _QUEUED:
            self._end(VsockError("the other end of a device's control socket does not read"))

    def drain(self) -> None:
        """Handle all messages that have come by now, without waiting for any."""
        # The queue is bounded by the sender's buffer; who fills it up meanwhile must not hold this up.
        for _ in range(_QUEUED):
            if not self._read_one():
                return

    def close(self) -> None:
        """Close this end; what waits to be sent is dropped."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._drop_queue()

    def _readable(self) -> None:
        for _ in range(_MESSAGES):
            if not self._read_one():
                return

    def _read_one(self) -> bool:
        if not self._open:
            return False
        passed: socket.socket | None = None
        try:
            if self._takes_descriptors:
                data, descriptors, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE + 1, 1)
                passed = socket.socket(fileno=descriptors[0]) if descriptors else None
                if flags & socket.MSG_CTRUNC:
                    raise VsockError("a descriptor on a device's control socket could not be received")
            else:
                data = self._socket.recv(MAX_MESSAGE + 1)
            if data:
                self._on_message(parse(data), passed)
                return True
            self._end(VsockError("the other end of the device's control socket is gone"))
        except BlockingIOError:
            return False
        except OSError as error:
            self._end(VsockError(f"the device's control socket broke: {error}"))
        except InterpreterError as error:
            if passed is not None:
                passed.close()
            self._end(error)
        return False

    def _flush(self) -> None:
        while self._queue and self._open:
            data, passed, sent = self._queue[0]
            try:
                if passed is None:
                    self._socket.send(data)
                else:
                    socket.send_fds(self._socket, [data], [passed.fileno()])
            except BlockingIOError:
                self._loop.add_writer(self._socket, self._flush)
                return
            except OSError:
                # Gone, which reading tells as well, after what it said last.
                self._drop_queue()
                break
            self._queue.popleft()
            if passed is not None:
                passed.close()
            if sent is not None:
                sent()
        if self._open:
            self._loop.remove_writer(self._socket)

    def _end(self, error: InterpreterError) -> None:
        if self._open:
            self.close()
            self._on_end(error)

    def _drop_queue(self) -> None:
        while self._queue:
            _, passed, sent = self._queue.popleft()
            if passed is not None:
                passed.close()
            if sent is not None:
                sent()
