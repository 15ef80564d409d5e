"""What the tests of the guest's agent share."""

from collections.abc import AsyncGenerator

import pytest
from guest_on_host import Guest, Kernel, start_guest


@pytest.fixture
async def fresh_guest() -> AsyncGenerator[Guest]:
    """An agent of the test's own, not renewed yet."""
    async with start_guest() as guest:
        yield guest


@pytest.fixture(scope="module")
async def unrenewed() -> AsyncGenerator[Guest]:
    """An agent that a module's tests share and none of them renews."""
    async with start_guest() as guest:
        yield guest


@pytest.fixture(scope="module")
async def guest() -> AsyncGenerator[Guest]:
    """A renewed agent that a module's tests share."""
    async with start_guest() as guest:
        await guest.renew()
        yield guest


@pytest.fixture
async def kernel(guest: Guest) -> AsyncGenerator[Kernel]:
    async with guest.kernel() as kernel:
        yield kernel
