"""What all routes share: the running service behind the application."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from interpreter.accounting.usage import UsageReader
from interpreter.engine.engine import Engine
from interpreter.sessions.service import Sessions
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
    started_at: float
    """Seconds since 1970."""

    async def database_works(self) -> None:
        """Raises HostError, DiskFull."""
        await self.store.database.run(lambda connection: connection.execute("SELECT 1").fetchone())


# Not `def`: FastAPI would run it in a thread, for each request.
async def _service(connection: HTTPConnection) -> Service:
    service: Service = connection.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
"""Type of a route's argument that is the service."""
