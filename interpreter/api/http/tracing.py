"""OpenTelemetry traces, when an exporter is configured by the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT)."""

import os
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from interpreter.errors import ConfigurationError

_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def is_configured() -> bool:
    """Whether traces are wanted."""
    return any(os.environ.get(name) for name in _VARIABLES)


class TracingMiddleware:
    """Makes a span of each request, below the caller's own when the request names it (W3C trace context).

    A span has the request's method, route and status, and the session's id; never code, data or paths of files.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._provider, self._propagator = _exporting_provider()
        self._tracer: Any = self._provider.get_tracer("interpreter")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on inside a span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = self._propagator.extract(dict(Headers(scope=scope)))
        with self._tracer.start_as_current_span(scope["method"], context=parent) as span:

            async def noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    route = scope.get("route")
                    name = route.path if isinstance(route, Route) else "none"
                    span.update_name(f"{scope['method']} {name}")
                    span.set_attribute("http.request.method", scope["method"])
                    span.set_attribute("http.route", name)
                    span.set_attribute("http.response.status_code", message["status"])
                    if session_id := scope.get("path_params", {}).get("session_id"):
                        span.set_attribute("interpreter.session.id", session_id)
                await send(message)

            await self._app(scope, receive, noted)


def _exporting_provider() -> tuple[Any, Any]:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        raise ConfigurationError(
            "traces are configured, but OpenTelemetry is not installed", hint="pip install 'interpreter[tracing]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "interpreter"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider, TraceContextTextMapPropagator()
