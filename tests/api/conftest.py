"""The service that the tests of this folder share."""

from collections.abc import AsyncGenerator

import pytest
from channels_client import new_kernel
from served import Api, own_home, serve

from interpreter import Engine, Settings


@pytest.fixture(scope="session")
async def api(engine: Engine, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Api]:
    home = own_home(settings, tmp_path_factory.mktemp("service") / "home")
    async with serve(Settings(home=home, default_template="base", memory_reserve_mb=256)) as api:
        yield api


@pytest.fixture(scope="module")
async def shared(api: Api) -> AsyncGenerator[str]:
    """One session for the tests of a module that need not have their own."""
    session_id = await api.new(name="shared")
    yield session_id
    await api.client.delete(f"/v1/sessions/{session_id}")


@pytest.fixture
async def session_id(api: Api) -> AsyncGenerator[str]:
    session_id = await api.new()
    yield session_id
    await api.client.delete(f"/v1/sessions/{session_id}")


@pytest.fixture
async def kernel(api: Api) -> AsyncGenerator[str]:
    """A Jupyter kernel of the test's own."""
    kernel = await new_kernel(api)
    yield kernel
    await api.client.delete(f"/api/kernels/{kernel}")


@pytest.fixture(scope="module")
async def shared_kernel(api: Api) -> AsyncGenerator[str]:
    """One Jupyter kernel for the tests of a module that need not have their own."""
    kernel = await new_kernel(api)
    yield kernel
    await api.client.delete(f"/api/kernels/{kernel}")
