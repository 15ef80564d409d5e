"""The reference of all routes is a page that needs no other machine."""

import re

import httpx
import pytest
from fastapi import FastAPI

from interpreter.api import reference


@pytest.fixture
def client() -> httpx.AsyncClient:
    app = FastAPI(docs_url=None, redoc_url=None)
    app.include_router(reference.router)
    app.mount(reference.ASSETS, reference.assets)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here")


async def test_all_that_the_page_loads_is_here(client: httpx.AsyncClient) -> None:
    page = await client.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for url in loaded:
        answer = await client.get(url)
        assert (url, answer.status_code, len(answer.content) > 1000) == (url, 200, True)


async def test_a_browser_may_load_nothing_else_on_it(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/docs")).headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self' ")
    assert "http" not in policy
