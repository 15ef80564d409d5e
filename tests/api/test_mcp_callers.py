"""An MCP session is its caller's alone: who knows its id and has another key does not get in."""

from pathlib import Path
from typing import Any

import httpx
from unopened import unopened_app

from interpreter import Settings

ABOUT = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
KINDS = {"Accept": "application/json, text/event-stream"}


def call(method: str, params: dict[str, Any], number: int | None = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": method, "params": params, **({} if number is None else {"id": number})}


async def test_another_key_does_not_get_into_a_session(tmp_path: Path) -> None:
    async with unopened_app(Settings(home=tmp_path)) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=KINDS) as http:
            mine = {"Authorization": "Bearer mine"}
            begun = await http.post("/mcp", json=call("initialize", ABOUT), headers=mine)
            assert begun.status_code == 200, begun.text
            session = {"Mcp-Session-Id": begun.headers["mcp-session-id"]}
            ready = call("notifications/initialized", {}, None)
            assert (await http.post("/mcp", json=ready, headers={**session, **mine})).status_code == 202
            listing = call("tools/list", {}, 2)
            for other in ({"Authorization": "Bearer other"}, {"X-API-Key": "other"}, {}):
                assert (await http.post("/mcp", json=listing, headers={**session, **other})).status_code == 404
                assert (await http.delete("/mcp", headers={**session, **other})).status_code == 404
            for own in (mine, {"X-API-Key": "mine"}):
                answer = await http.post("/mcp", json=listing, headers={**session, **own})
                assert "execute_code" in answer.text
