"""The service's side of the devices' parent: started before the first machine, asked for a device per machine."""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from types import TracebackType
from typing import Final, Self

import structlog

from interpreter.deadline import deadline
from interpreter.device.client import DeviceClient
from interpreter.device.wire import MAX_MESSAGE, Start, Started, parse_started
from interpreter.errors import InterpreterError, VsockError
from interpreter.vsock.device import DEFAULT_WINDOW

log = structlog.get_logger(__name__)

_START_SECONDS: Final = 15.0
_WORDS: Final = 2000
_PAUSE: Final = 1.0
"""Seconds before a parent that ended is started anew."""


class DeviceParent:
    """Forks devices' processes; an async context manager. When its process ends by itself it gets a new one.

    Leaving it waits for that process, which waits for its last device, so leave the machines first.
    """

    def __init__(self, open_filter: Callable[[], int]) -> None:
        """``open_filter`` opens the filter program for the devices' system calls (seccomp(2)) as a descriptor."""
        self._open_filter = open_filter
        self._answers: dict[int, asyncio.Future[Started]] = {}
        self._last = 0
        self._channel: asyncio.Future[socket.socket] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._channel = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        assert self._keeper is not None  # noqa: S101  (made on entering)
        assert self._channel is not None  # noqa: S101
        # One that is being started is there in a moment, and told then.
        await asyncio.wait({self._keeper, self._channel}, return_when=asyncio.FIRST_COMPLETED)
        if self._channel.done():
            self._channel.result().shutdown(socket.SHUT_RDWR)
        await asyncio.wait({self._keeper})

    @asynccontextmanager
    async def start(
        self, channel: socket.socket, *, pidfd: int, guest_cid: int, window: int = DEFAULT_WINDOW
    ) -> AsyncGenerator[DeviceClient]:
        """A device for the machine behind ``pidfd``, serving ``channel``, the socket to QEMU's chardev.

        ``channel`` stays the caller's, to be closed when this has returned. Leaving the block leaves the device's
        process alone: that ends with its machine. Raises VsockError, MachineDied.
        """
        if not 3 <= guest_cid < 0xFFFF_FFFF:
            raise VsockError(f"{guest_cid} cannot be a guest's context id")
        with ExitStack() as stack:
            ours, theirs = (
                stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            pid = await self._ask(guest_cid, window, [channel.fileno(), pidfd, theirs.fileno()])
            theirs.close()
            async with DeviceClient(pid, ours, guest_cid) as device:
                yield device

    async def _ask(self, guest_cid: int, window: int, descriptors: list[int]) -> int:
        if self._channel is None or self._closing:
            raise VsockError("no vsock device can be started outside of `async with`")
        self._last += 1
        number = self._last
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            async with deadline(_START_SECONDS):
                channel = await asyncio.shield(self._channel)
                socket.send_fds(channel, [Start(number, guest_cid, window).pack()], descriptors)
                started = await answer
        except TimeoutError:
            raise VsockError(f"no vsock device was started within {_START_SECONDS:g} s") from None
        except OSError as error:
            raise VsockError(f"no vsock device can be started: {error.strerror}") from error
        finally:
            del self._answers[number]
        if not started.pid:
            raise VsockError(f"no vsock device was started: {started.text}")
        return started.pid

    async def _keep(self) -> None:
        while True:
            try:
                status = await self._run()
            except Exception as error:
                # Whatever it is, the next try may go well; who waits for a device meanwhile is told in time.
                status = repr(error)
            if self._closing:
                return
            log.warning("the parent of vsock devices ended and is started anew", status=status)
            await asyncio.sleep(_PAUSE)
            if self._closing:
                return

    async def _run(self) -> str:
        """Run one process to its end; returns its status and last words."""
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            ours, theirs = (
                stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            )
            ours.setblocking(False)
            system_calls = self._open_filter()
            stack.callback(os.close, system_calls)
            # A group of its own: Ctrl-C in a terminal is for the service.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "interpreter.device", str(theirs.fileno()), str(system_calls)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                # Not the service's own, which whoever reads that would then wait for longer than for the service.
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(theirs.fileno(), system_calls),
                start_new_session=True,
            )
            theirs.close()
            loop.add_reader(ours, self._readable, ours)
            stack.callback(loop.remove_reader, ours)
            assert self._channel is not None  # noqa: S101  (made on entering)
            self._channel.set_result(ours)
            try:
                _, words = await process.communicate()
                return f"exit status {process.returncode} {words.decode(errors='replace')[-_WORDS:]}".strip()
            finally:
                self._channel = loop.create_future()
                for answer in self._answers.values():
                    if not answer.done():
                        answer.set_exception(VsockError("the parent of vsock devices ended"))

    def _readable(self, channel: socket.socket) -> None:
        try:
            data = channel.recv(MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(channel)
            return
        with contextlib.suppress(InterpreterError):
            started = parse_started(data)
            # When nobody waits for it any more, its machine is ended by whoever gave up, and it with that.
            answer = self._answers.get(started.number)
            if answer is not None and not answer.done():
                answer.set_result(started)
