"""A service, a JupyterLab that has it as its gateway, and a browser."""

import shutil
from collections.abc import AsyncGenerator

import pytest
from lab_page import SECONDS, LabPage
from lab_server import LabServer, jupyter_lab
from playwright.async_api import Browser, async_playwright
from served import Api, own_home, serve

from interpreter import Settings


@pytest.fixture(scope="session")
async def gateway(
    data_template: str, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Api]:
    home = own_home(settings, tmp_path_factory.mktemp("gateway") / "home")
    async with serve(Settings(home=home, default_template=data_template, memory_reserve_mb=256)) as api:
        yield api


@pytest.fixture(scope="session")
async def lab_server(gateway: Api, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[LabServer]:
    async with jupyter_lab(f"http://127.0.0.1:{gateway.port}", tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture(scope="session")
async def browser() -> AsyncGenerator[Browser]:
    program = shutil.which("chromium")
    assert program, "the browser is missing: make browser"
    async with async_playwright() as playwright:
        # Root, as which containers and CI run, has no sandbox in Chromium.
        browser = await playwright.chromium.launch(executable_path=program, chromium_sandbox=False)
        yield browser
        await browser.close()


@pytest.fixture
async def lab(lab_server: LabServer, browser: Browser, gateway: Api) -> AsyncGenerator[LabPage]:
    """JupyterLab in a tab of a browser that knows nothing of the tests before."""
    context = await browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(SECONDS * 1000)
    lab = LabPage(await context.new_page())
    # A workspace of its own each: none is restored.
    await lab.open(f"{lab_server.page}&reset")
    yield lab
    await context.close()
    for kernel in (await gateway.client.get("/api/kernels")).json():
        await gateway.client.delete(f"/api/kernels/{kernel['id']}")
    for path in lab_server.root.iterdir():
        if path.is_file():
            path.unlink()
