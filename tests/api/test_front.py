"""What every route has: the metrics, the health, a complete description of itself."""

from typing import Any

import pytest
from served import Api

pytestmark = pytest.mark.machine


async def test_the_description_names_every_error_and_has_examples(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    problem = "#/components/schemas/Problem"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation.get("description"), where
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert response["content"]["application/json"]["schema"]["$ref"] == problem, f"{where} {status}"
    schemas: dict[str, Any] = document["components"]["schemas"]
    for name in ("NewTimeout", "ExecutionResult", "SessionView", "CommandBody", "Move"):
        assert schemas[name]["example"], name
    for path in ("/v1/sessions/{session_id}/execute", "/v1/notebooks/execute"):
        assert document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["example"], path


async def test_metrics_count_by_route_not_by_session(api: Api, shared: str) -> None:
    await api.run(shared, "1")
    text = (await api.client.get("/metrics")).text
    assert 'interpreter_requests_total{method="POST",route="/v1/sessions/{session_id}/execute",status="200"}' in text
    assert 'interpreter_sessions{template="base"}' in text
    assert shared not in text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/templates"])
async def test_it_tells_that_it_is_well(api: Api, path: str) -> None:
    answer = await api.client.get(path)
    assert answer.status_code == 200
