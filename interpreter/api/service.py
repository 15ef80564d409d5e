"""What all routes share: the running service behind the application."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from interpreter.accounting.usage import UsageReader
from interpreter.engine.engine import Engine
from interpreter.errors import NotReady
from interpreter.sessions.service import Sessions
from interpreter.sessions.supervised import Supervisor
from interpreter.settings import Settings
from interpreter.store.store import Store


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that lives as long as the application does."""

    settings: Settings
    engine: Engine
    sessions: Sessions
    store: Store
    usage: UsageReader
    supervisor: Supervisor
    started_at: float
    """Seconds since 1970."""

    async def check_ready(self) -> None:
        """Raises NotReady when work in the background is down, HostError and DiskFull when the database is."""
        if self.supervisor.down:
            parts = "; ".join(f"{name}: {cause}" for name, cause in self.supervisor.down.items())
            raise NotReady(f"not all of the service works: {parts}", hint="It is tried again; the log tells more")
        await self.store.database.run(lambda connection: connection.execute("SELECT 1").fetchone())


# Not `def`: FastAPI would run it in a thread, for each request.
async def _service(connection: HTTPConnection) -> Service:
    service: Service = connection.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
"""Type of a route's argument that is the service."""
