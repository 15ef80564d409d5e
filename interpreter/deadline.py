"""A time limit for awaiting that also holds while a cancelled task cleans up.

Until Python 3.11.3 (gh-102780) `asyncio.timeout` raises CancelledError instead of TimeoutError there, so that the rest
of the cleaning up is left out. Debian 12 has 3.11.2.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator


@contextlib.asynccontextmanager
async def deadline(seconds: float | None) -> AsyncGenerator[asyncio.Timeout]:
    """Leave the block after so many seconds, or never when None. Raises TimeoutError then."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield limit
    except asyncio.CancelledError as error:
        if limit.expired() and task and task.cancelling() <= before:
            raise TimeoutError from error
        raise
