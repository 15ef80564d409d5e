"""Files over REST: bytes come back, an upload is there whole or not at all, every refusal has its code."""

import asyncio
import gzip
import io
import os
import socket
import tarfile
import zipfile

import pytest
from served import Api

pytestmark = pytest.mark.machine


def at(session_id: str, route: str = "") -> str:
    return f"/v1/sessions/{session_id}/files{route}"


async def put(api: Api, session_id: str, path: str, content: bytes, **params: bool) -> int:
    answer = await api.client.put(at(session_id, "/content"), params={"path": path, **params}, content=content)
    return answer.status_code


async def get(api: Api, session_id: str, path: str) -> bytes:
    answer = await api.client.get(at(session_id, "/content"), params={"path": path})
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
async def test_what_is_uploaded_comes_back(api: Api, shared: str, size: int) -> None:
    content = os.urandom(size)
    assert await put(api, shared, f"up/ü {size}", content) == 201
    assert await get(api, shared, f"up/ü {size}") == content


async def test_an_upload_of_unknown_length_is_taken(api: Api, shared: str) -> None:
    async def pieces():
        for number in range(5):
            yield bytes([number]) * 100_000

    answer = await api.client.put(at(shared, "/content"), params={"path": "chunked"}, content=pieces())
    assert answer.json() == {"path": "chunked", "size": 500_000}
    assert (await get(api, shared, "chunked"))[-1] == 4


async def test_a_form_brings_several_files(api: Api, shared: str) -> None:
    files = [("file", (f"{name}.csv", f"{name}\n1\n".encode())) for name in ("a", "b")]
    answer = await api.client.post(at(shared, "/upload"), params={"path": "form"}, files=files)
    assert answer.status_code == 201, answer.text
    assert await get(api, shared, "form/b.csv") == b"b\n1\n"


@pytest.mark.parametrize("name", ["../x.csv", "/etc/x", "..", "a/../../b"])
async def test_a_form_cannot_name_a_file_elsewhere(api: Api, shared: str, name: str) -> None:
    answer = await api.client.post(at(shared, "/upload"), files={"file": (name, b"x")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


async def test_without_overwrite_a_name_that_is_taken_is_refused(api: Api, shared: str) -> None:
    assert await put(api, shared, "taken", b"first") == 201
    assert await put(api, shared, "taken", b"second", overwrite=False) == 409
    files = {"file": ("taken", b"third")}
    answer = await api.client.post(at(shared, "/upload"), params={"overwrite": False}, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_exists")
    assert await get(api, shared, "taken") == b"first"


async def test_a_folder_is_listed_in_pages_with_sizes_and_types(api: Api, shared: str) -> None:
    for name in ("a.csv", "b.png", "c"):
        await put(api, shared, f"listed/{name}", b"12345")
    await api.client.post(at(shared, "/folders"), json={"path": "listed/d"})
    entries: list[dict[str, object]] = []
    after = ""
    while after is not None:
        params = {"path": "listed", "limit": 3, "after": after}
        page = (await api.client.get(at(shared), params=params)).json()
        entries += page["entries"]
        after = page["next"]
    assert [(entry["name"], entry["type"], entry["mime"]) for entry in entries] == [
        ("a.csv", "file", "text/csv"),
        ("b.png", "file", "image/png"),
        ("c", "file", "application/octet-stream"),
        ("d", "folder", "inode/directory"),
    ]
    assert entries[0]["size"] == 5


async def test_move_and_remove(api: Api, shared: str) -> None:
    await put(api, shared, "moving/a", b"a")
    await put(api, shared, "moving/b", b"b")
    body = {"source": "moving/a", "target": "moving/b"}
    assert (await api.client.post(at(shared, "/move"), json=body)).status_code == 409
    assert (await api.client.post(at(shared, "/move"), json={**body, "overwrite": True})).status_code == 200
    assert await get(api, shared, "moving/b") == b"a"
    answer = await api.client.delete(at(shared), params={"path": "moving"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "folder_not_empty")
    assert (await api.client.delete(at(shared), params={"path": "moving", "recursive": True})).status_code == 204
    answer = await api.client.get(at(shared), params={"path": "moving"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")


async def test_text_is_read_up_to_a_limit(api: Api, shared: str) -> None:
    await put(api, shared, "text", "grün\n".encode() * 100 + b"\xff")
    text = (await api.client.get(at(shared, "/text"), params={"path": "text", "limit": 6})).json()
    assert text == {"path": "text", "text": "grün\n", "size": 601, "truncated": True}
    whole = (await api.client.get(at(shared, "/text"), params={"path": "text"})).json()
    assert (whole["text"][-1], whole["truncated"]) == ("\ufffd", False)


async def test_a_folder_comes_as_an_archive(api: Api, shared: str) -> None:
    await put(api, shared, "packed/sub/file", b"content")
    answer = await api.client.get(at(shared, "/archive"), params={"path": "packed"})
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(answer.content))) as archive:
        member = archive.extractfile("packed/sub/file")
        assert member is not None
        assert member.read() == b"content"
    answer = await api.client.get(at(shared, "/archive"), params={"path": "packed", "format": "zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("packed/sub/file") == b"content"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("missing", 404, "file_not_found"),
        (".", 422, "is_a_folder"),
        ("a\0b", 422, "bad_path"),
        ("x" * 300, 422, "bad_path"),
        ("", 422, "invalid_request"),
        ("/etc/shadow", 403, "file_permission"),
        ("out/etc/shadow", 403, "file_permission"),
    ],
)
async def test_a_download_that_cannot_be_says_why(api: Api, shared: str, path: str, status: int, code: str) -> None:
    # A link that leads out leads only where the session's own user may go.
    await api.run(shared, "import os\nif not os.path.lexists('out'): os.symlink('/', 'out')")
    answer = await api.client.get(at(shared, "/content"), params={"path": path})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/etc/passwd", "/usr/x", "out/root/x"])
async def test_an_upload_goes_only_where_the_user_may_write(api: Api, shared: str, path: str) -> None:
    await api.run(shared, "import os\nif not os.path.lexists('out'): os.symlink('/', 'out')")
    answer = await api.client.put(at(shared, "/content"), params={"path": path}, content=b"x")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "file_permission")


async def test_a_body_that_is_cut_short_leaves_nothing(api: Api, shared: str) -> None:
    with socket.create_connection(("127.0.0.1", api.port)) as sent:
        request = f"PUT {at(shared, '/content')}?path=cut/file HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\n"
        sent.sendall(f"{request}Content-Length: 1000000\r\n\r\n".encode() + bytes(500_000))
        live = api.service.sessions.live_session(shared)
        assert live is not None
        async with asyncio.timeout(60):
            # The folder is there once the upload has begun.
            while (await api.client.get(at(shared), params={"path": "cut"})).status_code != 200:
                continue
    async with asyncio.timeout(60):
        while (await api.client.get(at(shared), params={"path": "cut"})).json()["entries"]:
            continue


async def test_a_body_over_the_limit_is_refused(api: Api, shared: str) -> None:
    limit = api.service.settings.upload_limit
    with socket.create_connection(("127.0.0.1", api.port)) as sent:
        request = f"PUT {at(shared, '/content')}?path=big HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\n"
        sent.sendall(f"{request}Content-Length: {limit + 1}\r\n\r\n".encode())
        assert await asyncio.to_thread(sent.recv, 12) == b"HTTP/1.1 413"
    answer = await api.client.get(at(shared, "/entry"), params={"path": "big"})
    assert answer.status_code == 404


async def test_a_full_scratch_disk_is_told_and_leaves_nothing(api: Api, session_id: str) -> None:
    # Filled from inside but for 20 MB, so that the upload is what finds it full.
    code = (
        "import os\ndisk = os.statvfs('.')\nsize = disk.f_bavail * disk.f_frsize - 20_000_000\n"
        "with open('filler', 'wb') as file: os.posix_fallocate(file.fileno(), 0, size)"
    )
    result = await api.run(session_id, code)
    assert result["status"] == "ok", result
    answer = await api.client.put(at(session_id, "/content"), params={"path": "late"}, content=bytes(40_000_000))
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "no_space")
    names = [
        entry["name"] for entry in (await api.client.get(at(session_id), params={"hidden": True})).json()["entries"]
    ]
    assert [name for name in names if "late" in name] == []
    assert await api.printed(session_id, "os.remove('filler'); print('works')") == "works\n"
