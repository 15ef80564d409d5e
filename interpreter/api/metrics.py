"""Prometheus metrics: requests, sessions, the pool, memory."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interpreter.sessions.resources import available_memory
from interpreter.sessions.service import Sessions

_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "interpreter_requests",
            "Requests that were answered.",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "interpreter_request_seconds",
            "Time from a request to the beginning of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )

    def watch(self, sessions: Sessions) -> None:
        """Tell of the sessions too."""
        self.registry.register(_SessionsCollector(sessions))


class _SessionsCollector(Collector):
    """Reads the figures of the sessions when they are asked for."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        sessions = self._sessions
        running = GaugeMetricFamily("interpreter_sessions", "Sessions that run.", labels=("template",))
        memory = GaugeMetricFamily(
            "interpreter_sessions_memory_bytes", "Memory that sessions hold.", labels=("template",)
        )
        disk = GaugeMetricFamily(
            "interpreter_sessions_disk_bytes", "Disk of the host's that sessions take.", labels=("template",)
        )
        buffers = GaugeMetricFamily(
            "interpreter_sessions_buffer_bytes", "Memory that the service holds for sessions.", labels=("template",)
        )
        counts: dict[str, int] = {}
        buffered: dict[str, int] = {}
        held: dict[str, int] = {}
        taken: dict[str, int] = {}
        for live in sessions.live:
            name = live.record.template
            counts[name] = counts.get(name, 0) + 1
            buffered[name] = buffered.get(name, 0) + live.held_bytes
            held[name] = held.get(name, 0) + sessions.ledger.memory_of(live.record.id)
            taken[name] = taken.get(name, 0) + sessions.disks.held(live.record.id)
        for name, count in counts.items():
            running.add_metric((name,), count)
            memory.add_metric((name,), held[name])
            disk.add_metric((name,), taken[name])
            buffers.add_metric((name,), buffered[name])
        ready = GaugeMetricFamily("interpreter_pool_ready", "Machines ready in the pool.", labels=("template",))
        for name, count in sessions.pool.ready.items():
            ready.add_metric((name,), count)
        waiting = GaugeMetricFamily("interpreter_waiting", "Requests that wait for room.", sessions.admission.waiting)
        free = GaugeMetricFamily(
            "interpreter_host_memory_available_bytes", "The host's free memory.", available_memory()
        )
        free_disk = GaugeMetricFamily(
            "interpreter_host_disk_available_bytes", "The host's free disk.", sessions.disks.available()
        )
        clients = GaugeMetricFamily(
            "interpreter_kernel_clients",
            "Jupyter clients that are connected.",
            sum(live.clients.connections for live in sessions.live),
        )
        yield from (running, memory, buffers, disk, ready, waiting, free, free_disk, clients)


class MetricsMiddleware:
    """Counts and times requests by their route, not by their path: sessions' ids must not become labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                name = route.path if isinstance(route, Route) else "none"
                self._metrics.requests.labels(name, scope["method"], message["status"]).inc()
                self._metrics.seconds.labels(name).observe(time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, noted)
