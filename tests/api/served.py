"""A service of the tests' own, served on a real port by the real server, with the run's template."""

import asyncio
import shutil
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from interpreter import Settings
from interpreter.api.app import create_app, open_service
from interpreter.api.http.server import new_server
from interpreter.api.service import Service
from interpreter.clock import Clock

SECONDS = 60.0


@dataclass(frozen=True)
class Api:
    """A running service and a client of it."""

    service: Service
    client: httpx.AsyncClient
    port: int

    async def new(self, **wanted: Any) -> str:
        """A new session's id."""
        answer = await self.client.post("/v1/sessions", json=wanted)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    async def run(self, session_id: str, code: str, **more: Any) -> dict[str, Any]:
        """The result of code."""
        answer = await self.client.post(f"/v1/sessions/{session_id}/execute", json={"code": code, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def printed(self, session_id: str, code: str, **more: Any) -> str:
        """What code printed."""
        result = await self.run(session_id, code, **more)
        assert result["status"] == "ok", result
        return "".join(output["text"] for output in result["outputs"] if output["type"] == "stream")


def own_home(settings: Settings, folder: Path) -> Path:
    """A state folder of its own, with the templates of the run."""
    folder.mkdir(exist_ok=True)
    (folder / "templates").symlink_to(settings.templates_home)
    if (kept := settings.home / "accelerator.json").exists():
        # As the service would have written it, whatever it was before.
        Path(shutil.copy(kept, folder)).chmod(0o600)
    return folder


@asynccontextmanager
async def serve(settings: Settings, clock: Clock | None = None) -> AsyncGenerator[Api]:
    async with open_service(settings, clock) as service:
        server = new_server(create_app(service), settings)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            serving = asyncio.create_task(server.serve([listener]))
            url = f"http://127.0.0.1:{port}"
            headers = {"Authorization": f"Bearer {settings.key}"} if settings.key else {}
            try:
                async with httpx.AsyncClient(base_url=url, timeout=SECONDS, headers=headers) as client:
                    yield Api(service, client, port)
            finally:
                server.should_exit = True
                await serving
