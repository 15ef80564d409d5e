"""The service opened, and the application in front of it: every router behind the caller's check."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from interpreter.accounting.usage import Rates, UsageReader
from interpreter.api import (
    commands,
    executions,
    files,
    notebooks,
    operations,
    problems,
    reference,
    sessions,
    tunnel,
    uploads,
    usage,
)
from interpreter.api.http import tracing
from interpreter.api.http.caller import CallerMiddleware
from interpreter.api.http.limits import BodyLimitMiddleware
from interpreter.api.jupyter import channels, kernels, kernelspecs, status
from interpreter.api.jupyter import sessions as jupyter_sessions
from interpreter.api.metrics import Metrics, MetricsMiddleware
from interpreter.api.service import Service
from interpreter.clock import Clock, SystemClock
from interpreter.engine.engine import Engine
from interpreter.sessions.service import open_sessions
from interpreter.sessions.supervised import Supervisor
from interpreter.settings import Settings
from interpreter.store.database import open_database
from interpreter.store.ownership import own_home
from interpreter.store.store import ResultLimits, Store

_ABOUT = """
Every session is a microVM with an IPython kernel, restored from a snapshot in a fraction of a second.

Errors have one form everywhere: `{"error": {"code", "message", "hint"}}`; codes never change. On Jupyter's own routes
`message` and `reason` beside it say the same in the words of its clients.
"""


@asynccontextmanager
async def open_service(settings: Settings, clock: Clock | None = None) -> AsyncGenerator[Service]:
    """Open the state folder, the database, the engine and the sessions. Raises HostError, ConfigurationError."""
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        stack.enter_context(own_home(settings.home))
        limits = ResultLimits(settings.session_results, settings.session_results_mb * 1_000_000)
        store = Store(await stack.enter_async_context(open_database(settings.database)), limits)
        engine = await stack.enter_async_context(Engine(settings))
        supervisor = await stack.enter_async_context(Supervisor(clock))
        opened = await stack.enter_async_context(open_sessions(settings, engine, store, clock, supervisor))
        rates = Rates(settings.cpu_hour_rate, settings.gb_hour_rate)
        usage_reader = UsageReader(store.database, rates)
        yield Service(settings, engine, opened, store, usage_reader, supervisor, clock.now())


def create_app(service: Service) -> FastAPI:
    """The ASGI application of an open service."""
    metrics = Metrics()
    metrics.watch(service.sessions)
    # Their own pages load scripts from elsewhere.
    app = FastAPI(
        title="interpreter", version=version("interpreter"), description=_ABOUT, docs_url=None, redoc_url=None
    )
    app.state.metrics = metrics
    app.state.service = service
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimitMiddleware, settings=service.settings)
    app.add_middleware(CallerMiddleware, settings=service.settings)
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    if tracing.is_configured():
        app.add_middleware(tracing.TracingMiddleware)
    problems.install(app)
    for module in (sessions, executions, commands, notebooks, files, uploads, tunnel, usage, operations, reference):
        app.include_router(module.router)
    for module in (kernelspecs, kernels, channels, jupyter_sessions, status):
        app.include_router(module.router)
    app.mount(reference.ASSETS, reference.assets)
    return app
