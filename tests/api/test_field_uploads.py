"""Uploads and names as people send them with curl, browsers and .NET; right is what any file server does."""

import asyncio
import gzip
import json
import os
import socket
import zlib
from pathlib import Path
from typing import Any

import pytest
from file_calls import CONTENT, at, code_of, curl, get, put
from served import Api

from interpreter.client import AsyncClient
from interpreter.errors import FileExists

pytestmark = pytest.mark.machine


def form(*parts: tuple[str, bytes]) -> dict[str, Any]:
    """A multipart body of parts with these Content-Dispositions, as its arguments for a request."""
    body = b"".join(
        f"--limit\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
        for disposition, content in parts
    )
    return {"content": body + b"--limit--\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=limit"}}


# Who must not overwrite


async def test_of_eight_uploads_at_once_that_must_not_overwrite_one_wins(api: Api, shared: str) -> None:
    contents = [bytes([number]) * 200_000 for number in range(8)]
    params = {"path": "race/file", "overwrite": False}
    answers = await asyncio.gather(
        *(api.client.put(at(shared), params=params, content=content) for content in contents)
    )
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [201, *[409] * 7]
    assert (await get(api, shared, "race/file")).content == contents[statuses.index(201)]


async def test_two_parts_of_one_name_that_must_not_overwrite_write_nothing(api: Api, shared: str) -> None:
    files = [("file", ("twice.csv", b"one")), ("file", ("other.csv", b"x")), ("file", ("twice.csv", b"two"))]
    answer = await api.client.post(at(shared, "/upload"), params={"path": "form2", "overwrite": False}, files=files)
    assert code_of(answer) == (409, "file_exists")
    assert "twice.csv" in answer.json()["error"]["message"]
    assert (await api.client.get(at(shared, ""), params={"path": "form2"})).status_code == 404


async def test_of_forms_at_once_that_must_not_overwrite_one_wins(api: Api, shared: str) -> None:
    async def post(number: int) -> int:
        files = {"file": ("only.csv", b"%d" % number)}
        answer = await api.client.post(at(shared, "/upload"), params={"path": "form3", "overwrite": False}, files=files)
        return answer.status_code

    statuses = await asyncio.gather(*map(post, range(6)))
    assert sorted(statuses) == [201, *[409] * 5]
    assert (await get(api, shared, "form3/only.csv")).content == b"%d" % statuses.index(201)


async def test_if_none_match_star_overwrites_nothing(api: Api, shared: str) -> None:
    assert (await put(api, shared, "star", b"one", **{"If-None-Match": "*"})).status_code == 201
    refused = await put(api, shared, "star", b"two", **{"If-None-Match": "*"})
    assert code_of(refused) == (409, "file_exists")
    assert refused.json()["error"]["hint"] == "Choose another name, or overwrite it"
    assert (await get(api, shared, "star")).content == b"one"


async def test_clients_that_must_not_overwrite_raise_file_exists(api: Api, shared: str) -> None:
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as client:
        session = client.session(shared)
        await session.upload(b"one", "client-once", overwrite=False)
        with pytest.raises(FileExists):
            await session.upload(b"two", "client-once", overwrite=False)


# Packed bodies


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_packed_body_is_stored_unpacked(api: Api, shared: str, coding: str) -> None:
    packed = gzip.compress(CONTENT) if coding == "gzip" else zlib.compress(CONTENT)
    answer = await put(api, shared, "unpacked", packed, **{"Content-Encoding": coding})
    assert answer.json() == {"path": "unpacked", "size": len(CONTENT)}
    assert (await get(api, shared, "unpacked")).content == CONTENT


async def test_a_file_that_is_packed_itself_stays_so(api: Api, shared: str) -> None:
    packed = gzip.compress(CONTENT)
    await put(api, shared, "data.csv.gz", packed, **{"Content-Type": "application/gzip"})
    answer = await get(api, shared, "data.csv.gz", accept_encoding="gzip")
    assert (answer.content, answer.headers.get("content-encoding")) == (packed, None)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
async def test_a_body_packed_otherwise_is_refused_and_leaves_nothing(api: Api, shared: str, coding: str) -> None:
    assert code_of(await put(api, shared, "never", b"x", **{"Content-Encoding": coding})) == (
        415,
        "unsupported_media_type",
    )
    assert (await get(api, shared, "never")).status_code == 404


async def test_a_packed_body_that_is_broken_or_too_much_leaves_what_was_there(api: Api, shared: str) -> None:
    await put(api, shared, "bomb", b"before")
    bomb = gzip.compress(bytes(api.service.settings.upload_limit + 1), 9)
    assert code_of(await put(api, shared, "bomb", bomb, **{"Content-Encoding": "gzip"})) == (413, "too_large")
    broken = gzip.compress(os.urandom(100_000))[:-10]
    assert code_of(await put(api, shared, "bomb", broken, **{"Content-Encoding": "gzip"})) == (400, "bad_request")
    assert (await get(api, shared, "bomb")).content == b"before"


# Forms as they come


async def test_the_name_that_dotnet_sends_is_decoded(api: Api, shared: str) -> None:
    disposition = (
        "form-data; name=file; filename=\"=?utf-8?B?5pel5pysLmNzdg==?=\"; filename*=utf-8''%E6%97%A5%E6%9C%AC.csv"
    )
    answer = await api.client.post(at(shared, "/upload"), **form((disposition, b"x")))
    assert (answer.status_code, answer.json()["files"]) == (201, [{"path": "日本.csv", "size": 1}])
    assert (await get(api, shared, "日本.csv")).content == b"x"


async def test_other_fields_of_a_form_are_passed_over(api: Api, shared: str) -> None:
    fields = {"csrf": "token", "comment": "a" * 10_000, "submit": ""}
    answer = await api.client.post(at(shared, "/upload"), data=fields, files={"file": ("with-fields.csv", b"x")})
    assert (answer.status_code, answer.json()["files"]) == (201, [{"path": "with-fields.csv", "size": 1}])


async def test_very_many_or_large_fields_are_refused(api: Api, shared: str) -> None:
    many = {f"field{number}": "x" for number in range(101)}
    files = {"file": ("x.csv", b"x")}
    assert (await api.client.post(at(shared, "/upload"), data=many, files=files)).status_code == 400
    large = {"field": "x" * 100_000}
    assert (await api.client.post(at(shared, "/upload"), data=large, files=files)).status_code == 400


async def test_a_folder_that_a_browser_uploads_keeps_its_shape(api: Api, shared: str) -> None:
    files = [("file", ("site/index.html", b"i")), ("file", ("site/css/a.css", b"c"))]
    answer = await api.client.post(at(shared, "/upload"), params={"path": "browser"}, files=files)
    assert answer.status_code == 201, answer.text
    assert (await get(api, shared, "browser/site/css/a.css")).content == b"c"


async def test_a_form_without_a_file_says_so(api: Api, shared: str) -> None:
    answer = await api.client.post(at(shared, "/upload"), data={"a": "b"})
    assert code_of(answer) == (422, "invalid_request")


# Names


async def test_names_that_are_not_utf8_are_listed_read_moved_and_removed(api: Api, shared: str) -> None:
    await api.run(shared, "import os\nos.mkdir(b'raw')\nopen(b'raw/caf\\xe9.csv', 'w').write('latin')")
    (entry,) = (await api.client.get(at(shared, ""), params={"path": "raw"})).json()["entries"]
    assert (entry["name"], entry["encoded"]) == ("caf\\xe9.csv", "caf%E9.csv")
    base = f"http://127.0.0.1:{api.port}"
    answer = await api.client.get(f"{base}{at(shared)}?path=raw/{entry['encoded']}")
    assert (answer.status_code, answer.text) == (200, "latin")
    described = await api.client.get(f"{base}{at(shared, '/entry')}?path=raw/caf%E9.csv")
    assert described.json()["size"] == 5
    moved = {"source": {"encoded": "raw/caf%E9.csv"}, "target": {"encoded": "raw/%FF%FE"}}
    assert (await api.client.post(at(shared, "/move"), json=moved)).json()["encoded"] == "%FF%FE"
    assert (await api.client.put(f"{base}{at(shared)}?path=raw/%E9new", content=b"x")).json()["path"] == "raw/\\xe9new"
    listed = await api.printed(shared, "print(sorted(os.listdir(b'raw')))")
    assert listed == "[b'\\xe9new', b'\\xff\\xfe']\n"
    assert (await api.client.delete(f"{base}{at(shared, '')}?path=raw/%FF%FE")).status_code == 204
    missing = await api.client.get(f"{base}{at(shared)}?path=raw/%FF%FE")
    assert code_of(missing) == (404, "file_not_found")
    assert "raw/\\xff\\xfe" in missing.json()["error"]["message"]


async def test_names_that_look_alike_stay_apart_over_pages(api: Api, shared: str) -> None:
    await api.run(
        shared,
        "import os\nos.mkdir('apart')\n"
        "for n in (b'\\xff', b'\\\\xff', b'50%', b'%FF', b'a b'): open(b'apart/' + n, 'w')",
    )
    seen: list[tuple[str, str | None]] = []
    after: str | None = ""
    while after is not None:
        page = (await api.client.get(at(shared, ""), params={"path": "apart", "limit": 1, "after": after})).json()
        seen += [(entry["name"], entry["encoded"]) for entry in page["entries"]]
        after = page["next"]
    assert seen == [("%FF", None), ("50%", None), ("\\xff", None), ("a b", None), ("\\xff", "%FF")]


async def test_the_client_goes_through_names_of_any_bytes(api: Api, shared: str, tmp_path: Path) -> None:
    await api.run(
        shared,
        "import os\nos.mkdir('any')\nfor n in (b'\\xe9', 'ü'.encode(), b'+ &#?%20'): open(b'any/' + n, 'w').write('x')",
    )
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as client:
        session = client.session(shared)
        names = [entry.exact_name async for entry in session.list_files("any")]
        assert len(names) == 3
        for name in names:
            assert await session.download(f"any/{name}") == b"x"
            await session.download(f"any/{name}", tmp_path)
            await session.move(f"any/{name}", f"any/{name}2")
            await session.remove(f"any/{name}2")
        assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted(os.fsencode(name) for name in names)  # noqa: PTH208


@pytest.mark.parametrize(
    "name", ["a b", "ü", "日本", "🐍", "-rf", "'\"$`\\", "%41", "a+b", "a&b=c#d?e", "new\nline", ".hidden", "e\u0301"]
)
async def test_any_text_is_a_name(api: Api, shared: str, name: str) -> None:
    assert (await put(api, shared, f"names/{name}", name.encode())).status_code == 201
    assert (await get(api, shared, f"names/{name}")).text == name


async def test_a_name_that_ends_as_a_folder_does_is_no_file(api: Api, shared: str) -> None:
    assert code_of(await put(api, shared, "notafile/", b"x")) == (422, "is_a_folder")


# Wrong headers


@pytest.mark.parametrize("length", ["-1", "abc", "1.5", ""])
async def test_a_wrong_length_is_refused(api: Api, shared: str, length: str) -> None:
    with socket.create_connection(("127.0.0.1", api.port)) as sent:
        request = f"PUT {at(shared)}?path=wrong HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        sent.sendall(request.encode())
        assert (await asyncio.to_thread(sent.recv, 12))[:10] == b"HTTP/1.1 4"
    assert (await get(api, shared, "wrong")).status_code == 404


@pytest.mark.parametrize(("mode", "shown"), [("755", "755"), ("0600", "600"), ("0o640", "640")])
async def test_permissions_are_octal_as_they_are_shown(api: Api, shared: str, mode: str, shown: str) -> None:
    answer = await api.client.put(at(shared), params={"path": "mode", "mode": mode}, content=b"x")
    assert answer.status_code == 201, answer.text
    entry = await api.client.get(at(shared, "/entry"), params={"path": "mode"})
    assert entry.json()["mode"] == shown


@pytest.mark.parametrize("mode", ["4755", "888", "-1", "", "u+x"])
async def test_permissions_that_are_none_are_refused(api: Api, shared: str, mode: str) -> None:
    answer = await api.client.put(at(shared), params={"path": "mode", "mode": mode}, content=b"x")
    assert code_of(answer) == (422, "invalid_request")


async def test_a_file_in_the_way_of_a_folder_is_told(api: Api, shared: str) -> None:
    await put(api, shared, "in-the-way", b"x")
    assert code_of(await put(api, shared, "in-the-way/below", b"y")) == (422, "not_a_folder")


async def test_a_name_that_is_not_encoded_in_the_url_is_refused_with_what_to_do(
    api: Api, shared: str, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"x")
    bare = f"http://127.0.0.1:{api.port}{at(shared)}"
    _, said = await curl("-T", "x", f"{bare}?path=grün", folder=tmp_path)
    assert json.loads(said)["error"]["code"] == "bad_request"
    assert "--url-query" in said
    assert (await curl("-T", "x", "--url-query", "path=grün", bare, folder=tmp_path))[0] == 0
    assert (await get(api, shared, "grün")).content == b"x"


async def test_a_form_that_ends_too_early_writes_nothing(api: Api, shared: str) -> None:
    whole = form(('form-data; name=f; filename="first"', b"1"), ('form-data; name=f; filename="last"', b"2"))
    whole["content"] = whole["content"][: -len(b"\r\n--limit--\r\n")]
    answer = await api.client.post(at(shared, "/upload"), params={"path": "early"}, **whole)
    assert code_of(answer) == (400, "bad_request")
    assert (await api.client.get(at(shared, ""), params={"path": "early"})).status_code == 404


async def test_an_input_for_a_file_that_nobody_filled_in_is_passed_over(api: Api, shared: str) -> None:
    parts = form(('form-data; name=a; filename=""', b""), ('form-data; name=b; filename="filled"', b"1"))
    answer = await api.client.post(at(shared, "/upload"), **parts)
    assert answer.json() == {"files": [{"path": "filled", "size": 1}]}
    answer = await api.client.post(at(shared, "/upload"), **form(('form-data; name=a; filename=""', b"nameless")))
    assert code_of(answer) == (422, "invalid_request")


@pytest.mark.parametrize(
    ("path", "said"),
    [(5, "path.text: Input should be a valid string"), ({}, "path.encoded.encoded: Field required")],
    ids=["a number", "nothing encoded"],
)
async def test_a_path_in_json_that_is_none_is_told_in_one_line(api: Api, shared: str, path: object, said: str) -> None:
    answer = await api.client.post(at(shared, "/folders"), json={"path": path})
    assert (answer.status_code, answer.json()["error"]["message"]) == (422, said)


async def test_a_pipe_is_uploaded_to_its_end(api: Api, shared: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writing = asyncio.create_task(asyncio.to_thread((tmp_path / "pipe").write_bytes, CONTENT * 30))
    async with AsyncClient(f"http://127.0.0.1:{api.port}") as client:
        assert await client.session(shared).upload(tmp_path / "pipe", "from-pipe") == len(CONTENT) * 30
    await writing
    assert (await get(api, shared, "from-pipe")).content == CONTENT * 30


async def test_a_form_that_the_disk_does_not_hold_leaves_whole_files_only(api: Api, session_id: str) -> None:
    code = (
        "import os\ndisk = os.statvfs('.')\nsize = disk.f_bavail * disk.f_frsize - 20_000_000\n"
        "with open('filler', 'wb') as file: os.posix_fallocate(file.fileno(), 0, size)"
    )
    assert (await api.run(session_id, code))["status"] == "ok"
    files = [("file", ("fits", b"1" * 1_000_000)), ("file", ("not", bytes(40_000_000))), ("file", ("after", b"x"))]
    answer = await api.client.post(at(session_id, "/upload"), params={"path": "full"}, files=files)
    assert code_of(answer) == (507, "no_space")
    listed = (await api.client.get(at(session_id, ""), params={"path": "full"})).json()["entries"]
    assert [(entry["name"], entry["size"]) for entry in listed] == [("fits", 1_000_000)]
    assert (await get(api, session_id, "full/fits")).content == b"1" * 1_000_000
    await api.client.delete(at(session_id, ""), params={"path": "filler"})
    assert (await put(api, session_id, "full/not", bytes(40_000_000))).status_code == 201


async def test_uploads_and_removals_at_once_leave_a_whole_file_or_none(api: Api, shared: str) -> None:
    async def remove() -> int:
        return (await api.client.delete(at(shared, ""), params={"path": "contested"})).status_code

    statuses = await asyncio.gather(
        *(put(api, shared, "contested", bytes([number]) * 300_000) for number in range(6)),
        *(remove() for _ in range(6)),
    )
    assert {status if isinstance(status, int) else status.status_code for status in statuses} <= {201, 204, 404}
    left = await get(api, shared, "contested")
    assert left.status_code == 404 or (len(left.content), len(set(left.content))) == (300_000, 1)
    names = (await api.client.get(at(shared, ""), params={"path": "."})).json()["entries"]
    assert [entry["name"] for entry in names if entry["name"].endswith(".part")] == []
