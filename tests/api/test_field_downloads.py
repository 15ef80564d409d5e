"""Downloads as curl, browsers and download managers make them; right is what any file server does."""

import asyncio
import hashlib
import io
import os
import tarfile
import zipfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from file_calls import CONTENT, at, code_of, curl, get, put, url
from served import Api

from interpreter.engine import files

pytestmark = pytest.mark.machine


# Downloads


async def test_head_tells_what_get_would_and_sends_nothing(api: Api, shared: str) -> None:
    await put(api, shared, "head.bin", CONTENT)
    head = await api.client.head(at(shared), params={"path": "head.bin"})
    whole = await get(api, shared, "head.bin")
    names = ("content-length", "etag", "last-modified", "accept-ranges", "content-type", "content-disposition")
    assert head.status_code == 200
    assert head.content == b""
    assert {name: head.headers[name] for name in names} == {name: whole.headers[name] for name in names}
    assert head.headers["content-length"] == str(len(CONTENT))
    assert (await api.client.head(at(shared), params={"path": "missing"})).status_code == 404


@pytest.mark.parametrize(
    ("wanted", "start", "end"), [("bytes=0-0", 0, 1), ("bytes=100-", 100, None), ("bytes=-10", -10, None)]
)
async def test_a_range_is_what_it_says(api: Api, shared: str, wanted: str, start: int, end: int | None) -> None:
    await put(api, shared, "ranges.bin", CONTENT)
    answer = await get(api, shared, "ranges.bin", range=wanted)
    part = CONTENT[start:end]
    first = start % len(CONTENT)
    assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(part) - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(len(part))


async def test_a_range_past_the_end_is_416_with_the_size(api: Api, shared: str) -> None:
    await put(api, shared, "ranges.bin", CONTENT)
    answer = await get(api, shared, "ranges.bin", range=f"bytes={len(CONTENT)}-")
    assert code_of(answer) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


async def test_several_ranges_at_once_get_it_all(api: Api, shared: str) -> None:
    await put(api, shared, "ranges.bin", CONTENT)
    answer = await get(api, shared, "ranges.bin", range="bytes=0-1,5-6")
    assert (answer.status_code, answer.content) == (200, CONTENT)


async def test_a_file_that_has_not_changed_is_not_sent_again(api: Api, shared: str) -> None:
    await put(api, shared, "cached", b"one")
    first = await get(api, shared, "cached")
    for condition in (
        {"if_none_match": first.headers["etag"]},
        {"if_modified_since": first.headers["last-modified"]},
    ):
        answer = await get(api, shared, "cached", **condition)
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", first.headers["etag"])
    # As long, and its time set back: no program can set the time of the change itself.
    code = (
        "import os\ns = os.stat('cached')\nopen('cached', 'w').write('two')\n"
        "os.utime('cached', ns=(s.st_atime_ns, s.st_mtime_ns))"
    )
    await api.run(shared, code)
    changed = await get(api, shared, "cached", if_none_match=first.headers["etag"])
    assert (changed.status_code, changed.text) == (200, "two")
    assert code_of(await get(api, shared, "cached", if_match=first.headers["etag"])) == (412, "precondition_failed")


async def test_a_part_of_another_state_is_not_joined_to_the_first(api: Api, shared: str) -> None:
    await put(api, shared, "resumed", b"a" * 100)
    etag = (await get(api, shared, "resumed")).headers["etag"]
    assert (await get(api, shared, "resumed", range="bytes=50-", if_range=etag)).status_code == 206
    await put(api, shared, "resumed", b"b" * 100)
    answer = await get(api, shared, "resumed", range="bytes=50-", if_range=etag)
    assert (answer.status_code, answer.content) == (200, b"b" * 100)


async def test_curl_resumes_a_download(api: Api, shared: str, tmp_path: Path) -> None:
    content = os.urandom(500_000)
    await put(api, shared, "curl.bin", content)
    (tmp_path / "curl.bin").write_bytes(content[:123_456])
    assert await curl("-C", "-", "-o", "curl.bin", url(api, shared, path="curl.bin"), folder=tmp_path) == (0, "")
    assert (tmp_path / "curl.bin").read_bytes() == content


async def test_curl_names_a_download_as_it_is_called(api: Api, shared: str, tmp_path: Path) -> None:
    await put(api, shared, "deep/report 1.csv", b"x")
    assert (await curl("-OJ", url(api, shared, path="deep/report 1.csv"), folder=tmp_path))[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report 1.csv"]


async def test_curl_does_not_spoil_a_file_by_resuming_an_upload(api: Api, shared: str, tmp_path: Path) -> None:
    await put(api, shared, "tail.bin", CONTENT)
    (tmp_path / "tail.bin").write_bytes(CONTENT + b"more")
    target = url(api, shared, path="tail.bin")
    status = await curl(
        "-T", "tail.bin", "-C", str(len(CONTENT)), "-w", "%{http_code}", "-o", "/dev/null", target, folder=tmp_path
    )
    assert status == (0, "400")
    assert (await get(api, shared, "tail.bin")).content == CONTENT


async def test_an_empty_file_is_one(api: Api, shared: str) -> None:
    assert (await put(api, shared, "empty", b"")).json()["size"] == 0
    for headers in ({}, {"range": "bytes=0-"}):
        answer = await get(api, shared, "empty", **headers)
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


async def test_a_large_file_comes_in_parts_as_it_is(api: Api, shared: str) -> None:
    await api.run(
        shared, "import os\nwith open('large', 'wb') as f:\n  for n in range(64): f.write(bytes([n]) * 1_000_000)"
    )
    whole = hashlib.sha256(b"".join(bytes([number]) * 1_000_000 for number in range(64)))
    size, step = 64_000_000, 13_000_000
    found = hashlib.sha256()
    for start in range(0, size, step):
        answer = await get(api, shared, "large", range=f"bytes={start}-{start + step - 1}")
        found.update(answer.content)
    assert found.digest() == whole.digest()


async def test_a_sparse_file_of_many_gigabytes_has_a_last_byte(api: Api, shared: str) -> None:
    await api.run(shared, "with open('sparse', 'wb') as f:\n  f.seek(50_000_000_000)\n  f.write(b'!')")
    answer = await get(api, shared, "sparse", range="bytes=-1")
    assert (answer.status_code, answer.content) == (206, b"!")
    head = await api.client.head(at(shared), params={"path": "sparse"})
    assert head.headers["content-length"] == "50000000001"
    await api.client.delete(at(shared, ""), params={"path": "sparse"})


async def test_a_file_of_the_future_has_no_date_to_compare_with(api: Api, shared: str) -> None:
    await api.run(
        shared, "import os\nopen('future', 'w').write('x')\nos.utime('future', (5_000_000_000, 5_000_000_000))"
    )
    answer = await get(api, shared, "future", if_modified_since="Fri, 01 Jan 2100 00:00:00 GMT")
    assert (answer.status_code, "last-modified" in answer.headers) == (200, False)


async def test_downloads_do_not_run_in_a_browser(api: Api, shared: str) -> None:
    await put(api, shared, "page.html", b"<script>alert(1)</script>")
    answer = await get(api, shared, "page.html")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")


async def test_a_file_that_grows_is_sent_as_long_as_it_was(api: Api, session_id: str) -> None:
    code = (
        "import threading, time\nf = open('log', 'ab', 0)\nf.write(b'x' * 2_000_000)\n"
        "def grow():\n  for _ in range(10_000): f.write(b'y' * 10_000); time.sleep(0.001)\n"
        "threading.Thread(target=grow, daemon=True).start()"
    )
    await api.run(session_id, code)
    answer = await get(api, session_id, "log")
    assert len(answer.content) == int(answer.headers["content-length"])


async def test_text_is_not_cut_within_a_character(api: Api, shared: str) -> None:
    await put(api, shared, "umlaut", "aüb".encode())
    answer = await api.client.get(at(shared, "/text"), params={"path": "umlaut", "limit": 2})
    assert (answer.json()["text"], answer.json()["truncated"]) == ("a", True)


# Folders, links, archives


async def test_a_link_is_read_and_written_through_and_removed_itself(api: Api, shared: str) -> None:
    await api.run(shared, "import os\nopen('real', 'w').write('1')\nos.symlink('real', 'link')")
    assert (await get(api, shared, "link")).content == b"1"
    await put(api, shared, "link", b"2")
    assert (await get(api, shared, "real")).content == b"2"
    assert (await api.client.get(at(shared, "/entry"), params={"path": "link"})).json()["target"] == "real"
    await api.client.delete(at(shared, ""), params={"path": "link"})
    assert (await get(api, shared, "real")).content == b"2"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe"])
async def test_what_is_no_file_is_not_read_for_ever(api: Api, shared: str, path: str) -> None:
    await api.run(shared, "import os\nif not os.path.exists('pipe'): os.mkfifo('pipe')")
    assert (await get(api, shared, path)).status_code in {403, 422}


async def test_a_file_that_tells_no_size_is_empty(api: Api, shared: str) -> None:
    answer = await get(api, shared, "/proc/version")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_an_archive_has_links_modes_and_names_of_all_kinds(api: Api, shared: str) -> None:
    code = (
        "import os\nos.makedirs('arch/empty')\nopen('arch/run.sh', 'w').write('#!')\nos.chmod('arch/run.sh', 0o750)\n"
        "os.symlink('run.sh', 'arch/link')\nopen(b'arch/caf\\xe9', 'w')\nopen('arch/日本', 'w')"
    )
    await api.run(shared, code)
    answer = await api.client.get(at(shared, "/archive"), params={"path": "arch", "format": "tar"})
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        members = {member.name: member for member in archive}
    assert set(members) == {"arch", "arch/empty", "arch/run.sh", "arch/link", "arch/caf\udce9", "arch/日本"}
    assert (members["arch/run.sh"].mode, members["arch/link"].linkname) == (0o750, "run.sh")
    answer = await api.client.get(at(shared, "/archive"), params={"path": "arch", "format": "zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert "arch/empty/" in archive.namelist()
    assert answer.headers["content-disposition"] == "attachment; filename=\"arch.zip\"; filename*=UTF-8''arch.zip"


async def test_head_of_an_archive_makes_none(api: Api, shared: str) -> None:
    head = await api.client.head(at(shared, "/archive"), params={"path": "."})
    assert (head.status_code, head.headers["content-type"]) == (200, "application/gzip")
    assert (await api.client.head(at(shared, "/archive"), params={"path": "missing"})).status_code == 404


# Many at once


async def test_many_downloads_and_uploads_at_once_do_not_mix(api: Api, shared: str) -> None:
    contents = {f"mix/{number}": os.urandom(50_000 + number) for number in range(24)}
    await asyncio.gather(*(put(api, shared, path, content) for path, content in contents.items()))
    answers = await asyncio.gather(*(get(api, shared, path) for path in contents))
    assert [answer.content for answer in answers] == list(contents.values())


async def test_who_reads_a_file_while_it_is_written_anew_sees_one_of_both(api: Api, shared: str) -> None:
    states = [b"a" * 700_000, b"b" * 900_000]
    await put(api, shared, "swap", states[0])

    async def write() -> None:
        for number in range(6):
            await put(api, shared, "swap", states[number % 2])

    async def read() -> None:
        for _ in range(6):
            assert (await get(api, shared, "swap")).content in states

    await asyncio.gather(write(), read(), read())


@pytest.mark.parametrize(
    ("name", "mime"),
    [
        ("a.csv", "text/csv"),
        ("a.csv.gz", "application/gzip"),
        ("a.tar.xz", "application/x-xz"),
        ("a.Z", None),
        ("a", None),
    ],
)
async def test_the_type_of_a_packed_file_is_that_of_the_packing(
    api: Api, shared: str, name: str, mime: str | None
) -> None:
    await put(api, shared, f"types/{name}", b"x")
    entry = (await api.client.get(at(shared, "/entry"), params={"path": f"types/{name}"})).json()
    assert entry["mime"] == (mime or "application/octet-stream")


async def test_files_from_before_1970_keep_their_time(api: Api, shared: str) -> None:
    await api.run(shared, "import os\nopen('old', 'w').write('x')\nos.utime('old', (-86400, -86400))")
    entry = (await api.client.get(at(shared, "/entry"), params={"path": "old"})).json()
    assert entry["modified_at"] == "1969-12-31T00:00:00Z"
    assert "last-modified" not in (await get(api, shared, "old")).headers


async def test_eight_connections_for_one_file_bring_it_whole(api: Api, shared: str) -> None:
    content, step = os.urandom(4_000_000), 500_000
    await put(api, shared, "parallel", content)
    wanted = [f"bytes={start}-{start + step - 1}" for start in range(0, len(content), step)]
    answers = await asyncio.gather(*(get(api, shared, "parallel", range=part) for part in wanted))
    assert b"".join(answer.content for answer in answers) == content


async def test_a_file_that_is_removed_while_it_is_read_comes_to_its_end(api: Api, shared: str) -> None:
    await put(api, shared, "removed", bytes(8_000_000))
    async with api.client.stream("GET", at(shared), params={"path": "removed"}) as answer:
        pieces = answer.aiter_raw()
        size = len(await anext(pieces))
        assert (await api.client.delete(at(shared, ""), params={"path": "removed"})).status_code == 204
        async for piece in pieces:
            size += len(piece)
    assert size == 8_000_000


async def test_downloads_that_nobody_takes_do_not_stop_what_else_is_done_with_files(
    api: Api, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_TURN_SECONDS", 0.5)
    await api.run(session_id, "with open('stalled', 'wb') as f: f.truncate(300_000_000)")
    async with AsyncExitStack() as stack:
        stalled: list[AsyncIterator[bytes]] = []
        for _ in range(files.MAX_TRANSFERS):
            answer = await stack.enter_async_context(
                api.client.stream("GET", at(session_id), params={"path": "stalled"})
            )
            # One that is let go of would close its answer.
            stalled.append(answer.aiter_raw())
            await anext(stalled[-1])
        assert (await api.client.get(at(session_id, ""), params={"path": "."})).status_code == 200
        assert await api.printed(session_id, "print('runs')") == "runs\n"
        refused = await get(api, session_id, "stalled", range="bytes=0-0")
        assert code_of(refused) == (429, "busy")
        assert "retry-after" in refused.headers
    assert (await get(api, session_id, "stalled", range="bytes=0-0")).status_code == 206


async def test_a_download_that_breaks_off_is_not_taken_for_the_whole(
    api: Api, shared: str, caplog: pytest.LogCaptureFixture
) -> None:
    await api.run(shared, "with open('shrinks', 'wb') as f: f.truncate(200_000_000)")
    with pytest.raises(httpx.RemoteProtocolError):
        async with api.client.stream("GET", at(shared), params={"path": "shrinks"}) as answer:
            pieces = answer.aiter_raw()
            await anext(pieces)
            await api.run(shared, "open('shrinks', 'r+').truncate(10)")
            async for _ in pieces:
                continue
    await api.run(shared, "import os; os.makedirs('deep/' + '/'.join(['d'] * 300))")
    with pytest.raises(httpx.RemoteProtocolError):
        await api.client.get(at(shared, "/archive"), params={"path": "deep"})
    # It is the session's doing: a line, and no traceback.
    assert [record.exc_info for record in caplog.records if record.exc_info] == []
