"""The application of a service that has no machines: for what is decided before any session is asked for."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from interpreter import Engine, Settings
from interpreter.accounting.ledger import Ledger
from interpreter.accounting.usage import Rates, UsageReader
from interpreter.api.app import create_app
from interpreter.api.service import Service
from interpreter.clock import SystemClock
from interpreter.mcp.server import mount_mcp
from interpreter.sessions.service import Sessions
from interpreter.sessions.supervised import Supervisor
from interpreter.store.database import open_database
from interpreter.store.store import Store


@asynccontextmanager
async def unopened_app(settings: Settings) -> AsyncGenerator[FastAPI]:
    """The real application with MCP, in front of an engine that was never entered."""
    clock = SystemClock()
    async with open_database(settings.database) as database, Supervisor(clock) as supervisor:
        store, engine = Store(database), Engine(settings)
        sessions = Sessions(settings, engine, store, Ledger(database, clock), clock, supervisor)
        usage = UsageReader(database, Rates(0, 0))
        app = create_app(Service(settings, engine, sessions, store, usage, supervisor, clock.now()))
        async with mount_mcp(app):
            yield app
