"""Who may start a session now: limits per tenant and in all, the host's memory and disk, and a bounded queue."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import Draining, HostFull, TenantLimit
from interpreter.sessions.resources import Resource
from interpreter.settings import Settings

_RETRY_SECONDS: Final = 5
_CPUS_EACH: Final = 32


@dataclass(frozen=True, slots=True)
class Ticket:
    """The right to one session, until it is given back."""

    tenant: str
    cpus: int


class Admission:
    """Gives out tickets. ``running`` tells the ids of the sessions that run."""

    def __init__(
        self,
        settings: Settings,
        host_cpus: int,
        resources: Sequence[Resource],
        running: Callable[[], Iterable[str]],
    ) -> None:
        self._settings = settings
        self._max_cpus = settings.max_cpus or host_cpus * _CPUS_EACH
        self._resources = resources
        self._running = running
        self._tenants: Counter[str] = Counter()
        self._cpus = 0
        self._starting = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._draining = False

    @property
    def waiting(self) -> int:
        """How many requests wait for room."""
        return len(self._waiting)

    def drain(self) -> None:
        """Refuse all from now on, also those who wait."""
        self._draining = True
        self.look_again()

    def check_accepting(self) -> None:
        """Raises Draining when no new work is taken any more."""
        if self._draining:
            raise Draining("the service is being stopped", retry_after=_RETRY_SECONDS)

    @asynccontextmanager
    async def ticket(self, tenant: str, cpus: int) -> AsyncGenerator[Ticket]:
        """A ticket, held while the session starts. It stays given out when the block is left without an error.

        Raises TenantLimit at once, HostFull after waiting, Draining.
        """
        await self._wait_for_room(tenant, cpus)
        ticket = Ticket(tenant, cpus)
        self._tenants[tenant] += 1
        self._cpus += cpus
        self._starting += 1
        try:
            yield ticket
        except BaseException:
            self.give_back(ticket)
            raise
        finally:
            self._starting -= 1
            self.look_again()

    def take(self, tenant: str, cpus: int) -> Ticket:
        """A ticket for a session that runs already (it was taken over), whatever the limits say."""
        self._tenants[tenant] += 1
        self._cpus += cpus
        return Ticket(tenant, cpus)

    def give_back(self, ticket: Ticket) -> None:
        """The session is over."""
        self._tenants[ticket.tenant] -= 1
        self._cpus -= ticket.cpus
        self.look_again()

    async def _wait_for_room(self, tenant: str, cpus: int) -> None:
        settings = self._settings
        # Whoever waits already goes first.
        full = self._lack(tenant, cpus) or ("others wait for room" if self._waiting else None)
        if full is None:
            return
        if len(self._waiting) >= settings.queue_size or settings.queue_seconds == 0:
            raise HostFull(f"no room for another session: {full}", retry_after=_RETRY_SECONDS)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with deadline(settings.queue_seconds):
                while full:
                    await turn
                    turn = asyncio.get_running_loop().create_future()
                    self._waiting[0] = turn
                    full = self._lack(tenant, cpus)
        except TimeoutError:
            raise HostFull(
                f"no room for another session within {settings.queue_seconds:g} s: {full}", retry_after=_RETRY_SECONDS
            ) from None
        finally:
            self._waiting.remove(turn)
            self.look_again()

    def _lack(self, tenant: str, cpus: int) -> str | None:
        """What there is not enough of; None when a session may start. Raises Draining, TenantLimit."""
        settings = self._settings
        self.check_accepting()
        if self._tenants[tenant] >= settings.max_sessions_per_tenant:
            raise TenantLimit(
                f"you have as many sessions as you may have: {self._tenants[tenant]}",
                hint="Stop one, or wait until one's time is up",
                retry_after=_RETRY_SECONDS,
            )
        if self._tenants.total() >= settings.max_sessions:
            return f"this service holds {settings.max_sessions} at most"
        if self._cpus + cpus > self._max_cpus:
            return f"{self._cpus} vCPUs are taken of {self._max_cpus}"
        for resource in self._resources:
            if not resource.has_room(self._running(), self._starting):
                return f"the host's {resource.name} is taken"
        return None

    def look_again(self) -> None:
        """Something may have changed: what the host has left, or who holds what."""
        # The first in the queue looks again; when it may start, its leaving wakes the next. Draining refuses them all.
        if self._waiting and not self._waiting[0].done():
            self._waiting[0].set_result(None)
