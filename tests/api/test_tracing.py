"""Traces: a request becomes a span at the collector that the environment names, without what the user sent."""

import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from fastapi import FastAPI

from interpreter.api.http.tracing import TracingMiddleware, is_configured

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Generator[list[bytes]]:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    threading.Thread(target=server.serve_forever).start()
    yield received
    server.shutdown()
    server.server_close()


async def test_a_request_becomes_a_span_below_its_callers(collector: list[bytes]) -> None:
    assert is_configured()
    app = FastAPI()

    @app.get("/v1/sessions/{session_id}")
    async def look(session_id: str) -> str:
        return session_id

    traced = TracingMiddleware(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(traced), base_url="http://x") as client:
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        assert (await client.get("/v1/sessions/abc?q=secret", headers=headers)).status_code == 200
    traced._provider.force_flush()
    sent = b"".join(collector)
    for part in (b"GET /v1/sessions/{session_id}", b"abc", bytes.fromhex(TRACE)):
        assert part in sent
    assert b"secret" not in sent


def test_without_a_collector_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert not is_configured()
