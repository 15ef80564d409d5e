"""A service after an upgrade: an outdated template is told with the command that renews it, and renewed if allowed."""

from pathlib import Path

import httpx
from paper_builds import publish, rewrite
from served import Api, serve

from interpreter import Settings
from interpreter.settings import AcceleratorChoice


async def is_outdated(api: Api, name: str) -> bool:
    templates = (await api.client.get("/v1/templates")).json()["templates"]
    return {one["name"]: one["outdated"] for one in templates}[name]


async def refused(api: Api, template: str) -> httpx.Response:
    return await api.client.post("/v1/sessions", json={"template": template})


async def test_an_outdated_template_is_told_and_leaves_no_session_behind(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", accelerator=AcceleratorChoice.TCG)
    publish(settings, "base")
    async with serve(settings) as api:
        assert not await is_outdated(api, "base")
        rewrite(settings, agent_version=1)
        assert await is_outdated(api, "base")
        answer = await refused(api, "base")
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "template_outdated"
        assert error["hint"] == "Build it anew: interpreter template build base"
        assert (await api.client.get("/v1/sessions")).json()["sessions"] == []
