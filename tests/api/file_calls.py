"""Requests about files, as the tests of files make them."""

import asyncio
from pathlib import Path
from urllib.parse import quote

import httpx
from served import SECONDS, Api

CONTENT = bytes(range(256)) * 40


def at(session_id: str, route: str = "/content") -> str:
    return f"/v1/sessions/{session_id}/files{route}"


async def put(api: Api, session_id: str, path: str, content: bytes, **headers: str) -> httpx.Response:
    return await api.client.put(at(session_id), params={"path": path}, content=content, headers=headers)


async def get(api: Api, session_id: str, path: str, **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.client.get(at(session_id), params={"path": path}, headers=headers)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def curl(*arguments: str, folder: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", *arguments), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SECONDS):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


def url(api: Api, session_id: str, route: str = "/content", path: str = ".", more: str = "") -> str:
    return f"http://127.0.0.1:{api.port}{at(session_id, route)}?path={quote(path)}{more}"
