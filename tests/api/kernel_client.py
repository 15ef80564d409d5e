"""What tests do with jupyter_client: a manager that tells of its launches, a client that is ready, code that is run."""

import asyncio
from typing import Any

from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager
from served import SECONDS


class ToldManager(AsyncIOLoopKernelManager):
    """Restarts its kernel when that has died, and tells when one was launched."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.launched = asyncio.Event()

    async def _async_post_start_kernel(self, **more: Any) -> None:
        await super()._async_post_start_kernel(**more)
        self.launched.set()


async def connected(manager: AsyncKernelManager) -> Any:
    """A client of a manager's kernel, which has answered it."""
    client: Any = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=SECONDS)
    return client


async def run(client: Any, code: str, **more: Any) -> str:
    """What code gave, or the name of what it raised."""
    said: list[str] = []

    def output(message: dict[str, Any]) -> None:
        content = message["content"]
        if message["msg_type"] in {"execute_result", "error"}:
            said.append(content.get("ename") or content["data"]["text/plain"])

    await client.execute_interactive(code, output_hook=output, timeout=SECONDS, **more)
    return "".join(said)


async def wait_for(client: Any, request: str, kind: str) -> dict[str, Any]:
    """The next message of iopub of that kind that belongs to a request."""
    while True:
        message = await client.get_iopub_msg(timeout=SECONDS)
        if message["msg_type"] == kind and message["parent_header"].get("msg_id") == request:
            return message
