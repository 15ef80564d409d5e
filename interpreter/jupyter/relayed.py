"""A kernel in a machine as Jupyter's clients want one: behind five sockets, with the manners of a process."""

import asyncio
import contextlib
from typing import Final

import structlog

from interpreter.deadline import deadline
from interpreter.engine.kernel import KernelChange
from interpreter.errors import Busy, InterpreterError, ServiceUnreachable, Unauthorised
from interpreter.jupyter.endpoints import Endpoints, Listeners
from interpreter.jupyter.guests import GuestKernel, Guests, Wanted
from interpreter.jupyter.holding import Held
from interpreter.kernel.splicing import ByteStream, splice

log = structlog.get_logger(__name__)

MACHINE_GONE: Final = -9
"""The status of a kernel whose machine is gone: as if it had been killed."""
UNKNOWN: Final = 255
_INTERRUPT_SECONDS: Final = 3.0


class RelayedKernel:
    """Starts a kernel, splices its clients' connections to it, and knows whether it lives.

    It belongs to one event loop, which must turn all the time; only ``status`` may be looked at from elsewhere.
    """

    def __init__(self, guests: Guests, wanted: Wanted, endpoints: Endpoints) -> None:
        self.status: int | None = None
        """The exit status of a kernel that has ended, negative for a signal; None while it runs."""
        self.endpoints = endpoints
        """Where clients connect."""
        self._guests = guests
        self._wanted = wanted
        self._listeners = Listeners(endpoints, self._connected)
        self._held: Held[GuestKernel] | None = None
        self._guest: GuestKernel | None = None
        self._left: list[Held[GuestKernel]] = []
        """Sessions whose machines ended by themselves; they are tidied up meanwhile."""
        self._changing = asyncio.Lock()
        self._ended = asyncio.Event()
        self._settled = asyncio.Event()
        """Whether it is known if there is a kernel; clients that come before that wait."""

    async def listen(self) -> None:
        """Let clients connect, who then wait for the kernel. Raises HostError."""
        await self._listeners.open()

    async def start(self) -> None:
        """Start the kernel, or replace the one that was there by a new one: in the same session, where files stay,
        or in a new one with the same key when the machine is gone. Raises InterpreterError.
        """
        async with self._changing:
            self._settled.clear()
            try:
                await self.listen()
                if not await self._restarted():
                    self._status_is(None)
                    # Before it is there: its machine may end as soon as it is.
                    held = self._held = Held(self._guests.kernel(self._wanted, self._changed))
                    try:
                        guest = await held.entered()
                    except BaseException:
                        self._held = None
                        raise
                    if self._held is held:
                        self._guest = guest
            except BaseException:
                self._status_is(UNKNOWN)
                raise
            finally:
                self._settled.set()

    async def interrupt(self) -> None:
        """Interrupt what runs, as Ctrl-C does; nothing happens when there is no kernel or it takes too long."""
        if self._guest is None:
            return
        with contextlib.suppress(InterpreterError, OSError, TimeoutError):
            async with deadline(_INTERRUPT_SECONDS):
                await self._guest.interrupt()

    def kill(self, signal: int) -> None:
        """Take the kernel for killed by a signal. What is left of it ends with the next start, or with ``close``."""
        if self.status is None:
            self._status_is(-signal)
        self._listeners.drop()

    async def wait(self) -> int:
        """Wait until the kernel has ended; returns its status."""
        while self.status is None:
            await self._ended.wait()
        return self.status

    async def close(self) -> None:
        """End the kernel with its session, and listen no more."""
        # A start that was broken off is given the time to end what it has begun.
        async with self._changing:
            if self.status is None:
                self._status_is(MACHINE_GONE)
            try:
                await self._listeners.close()
            finally:
                await self._leave()

    async def _restarted(self) -> bool:
        """Replace the kernel in its session; False when that cannot be, and then there is no session any more."""
        if self._guest is not None:
            self._status_is(None)
            try:
                await self._guest.restart()
            except (ServiceUnreachable, Unauthorised, Busy):
                # The session may be there all the same, with its files; it is asked for again the next time.
                raise
            except InterpreterError as error:
                log.warning("the kernel's session is replaced by a new one, without its files", error=str(error))
            else:
                return True
        await self._leave()
        return False

    async def _leave(self) -> None:
        if self._held is not None:
            self._left.append(self._held)
        self._held, self._guest = None, None
        while self._left:
            # Its machine may be what failed; what matters is that it is gone.
            with contextlib.suppress(InterpreterError, OSError):
                await self._left.pop().leave()

    async def _connected(self, channel: str, client: ByteStream) -> None:
        await self._settled.wait()
        # With no kernel the connection is closed at once; the client tries again, and again.
        if self._guest is None or self.status is not None:
            return
        try:
            async with self._guest.stream(channel) as kernel:
                await splice(client, kernel)
        except (InterpreterError, OSError) as error:
            log.debug("a client's connection could not be passed on", channel=channel, error=str(error))

    def _changed(self, change: KernelChange, status: int | None) -> None:
        if change == "died":
            self._status_is(UNKNOWN if status is None else status)
        elif change == "ended" and self._held is not None:
            self._held.leave_soon()
            self._left.append(self._held)
            self._held, self._guest = None, None
            self._listeners.drop()
            if self.status is None:
                self._status_is(MACHINE_GONE)

    def _status_is(self, status: int | None) -> None:
        self.status = status
        if status is None:
            self._ended.clear()
        else:
            self._ended.set()
