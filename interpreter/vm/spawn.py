"""Starting a program in a process group of its own, and ending that group as a whole."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any


async def spawn(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, **streams: Any
) -> asyncio.subprocess.Process:
    """Start a program as the leader of a new session. ``streams`` are those of create_subprocess_exec.

    Cancelled while it starts, it ends the whole group: asyncio itself would kill the leader alone.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(*command, env=environment, start_new_session=True, **streams)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        process = await starting
        signal_group(process, signal.SIGKILL)
        await process.wait()
        raise


def signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process that ``spawn`` started and to all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
