"""Routes of files: down, list, look, read, make, move, remove, archive. Bytes pass piece by piece."""

import codecs
import time
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Annotated, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from interpreter.api.answers import BytesOfSession
from interpreter.api.http.caller import CallerOf
from interpreter.api.http.conditional import Validators, select
from interpreter.api.http.names import FilePath, FolderPath, JsonPath, attachment, decoded, encoded, path_of, shown
from interpreter.api.problems import answer, problems
from interpreter.api.service import ServiceOf
from interpreter.kernel.archive import ArchiveFormat
from interpreter.kernel.files import GuestFile
from interpreter.kernel.paths import name_bytes
from interpreter.kernel.tree import MAX_PAGE, Entry

router = APIRouter(prefix="/v1/sessions/{session_id}/files", tags=["files"])

_BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_MEDIA_TYPES: Final = {"tar.gz": "application/gzip", "tar": "application/x-tar", "zip": "application/zip"}
_MEDIA_TYPE: Final = "application/octet-stream"
_FIRST_SECOND: Final = -62_135_596_800
"""Of the year 1, and the last of 9999: no date is before or after."""
_LAST_SECOND: Final = 253_402_300_799
_TEXT_LIMIT: Final = 1_000_000
_WRITE: Final = 256 * 1024


class EntryView(BaseModel):
    """A file, folder or link."""

    name: str = Field(description="A byte that is not UTF-8 is shown as `\\xff`.")
    encoded: str | None = Field(
        default=None,
        description="The name percent-encoded, when it is not UTF-8. So it goes into a URL, and into JSON, in place of "
        'a path, as `{"encoded": "caf%E9.csv"}`.',
        examples=[None],
    )
    type: Literal["file", "folder", "link", "other"]
    size: int = Field(description="In bytes.")
    mime: str = Field(description="The media type that the name suggests.")
    mode: str = Field(description="Permissions, in octal.", examples=["644"])
    modified_at: datetime
    target: str | None = Field(default=None, description="Where a link leads.")


class Folder(BaseModel):
    """A page of a folder's entries, by name. ``next`` is the cursor of the page after this one."""

    path: str
    entries: list[EntryView]
    next: str | None


class Text(BaseModel):
    """A file's beginning as text; bytes that are no UTF-8 are replaced."""

    path: str
    text: str
    size: int = Field(description="Of the whole file, in bytes.")
    truncated: bool


class NewFolder(BaseModel):
    """A folder to make, with those on the way to it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"path": "results/2026"}})

    path: JsonPath


class Move(BaseModel):
    """What to move where."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"source": "a.csv", "target": "old/a.csv", "overwrite": False}}
    )

    source: JsonPath
    target: JsonPath
    overwrite: bool = False


@router.get("", summary="List a folder", responses=problems(404, 409, 504))
async def list_folder(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    path: FolderPath,
    after: Annotated[str, Query(max_length=1020, description="`next` of the page before, as it is.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 200,
    hidden: bool = True,
) -> Folder:
    """A folder's entries with their sizes and types, by name."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        page = await session.files.list_folder(path, after=decoded(after), limit=limit, hidden=hidden)
    cursor = quote(name_bytes(page.entries[-1].name), safe="") if page.more else None
    return Folder(path=shown(path), entries=[_view(entry) for entry in page.entries], next=cursor)


@router.get("/entry", summary="Look at a file or folder", responses=problems(404, 409, 504))
async def describe(caller: CallerOf, service: ServiceOf, session_id: str, path: FilePath) -> EntryView:
    """Its size, type and times; a link is not followed."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        return _view(await session.files.describe(path))


@router.head("/content", include_in_schema=False)
@router.get(
    "/content",
    summary="Download a file",
    response_class=StreamingResponse,
    responses={
        **problems(404, 409, 412, 416, 429),
        200: {"content": _BYTES, "description": "The file's bytes."},
        206: {"content": _BYTES, "description": "Those that Range asked for."},
        304: {"description": "It is as the client knows it."},
    },
)
async def download(caller: CallerOf, service: ServiceOf, session_id: str, path: FilePath, request: Request) -> Response:
    """A file's bytes, as they come out of the session. HEAD, Range, ETag and dates as with any file server."""
    live = await service.sessions.running(caller.tenant, session_id)
    async with AsyncExitStack() as stack:
        session = stack.enter_context(live.use())
        file = await stack.enter_async_context(session.files.open_download(path))
        known = _validators(file)
        selected = select(request.headers, known, ranges=request.method == "GET" and file.has_parts)
        headers = _headers(known, path.rsplit("/", 1)[-1])
        match selected.status:
            case 412:
                return answer(412, "precondition_failed", f"{shown(path)} is another than was asked for", None)
            case 416:
                what = f"{shown(path)} has {file.size} bytes, and none of those asked for"
                return answer(416, "range_not_satisfiable", what, None, {"Content-Range": f"bytes */{file.size}"})
            case 304:
                return Response(status_code=304, headers=headers)
            case 206:
                last = selected.start + selected.count - 1
                headers["Content-Range"] = f"bytes {selected.start}-{last}/{file.size}"
            case 200:
                pass
        headers["Content-Length"] = str(selected.count)
        if request.method == "HEAD":
            return Response(headers=headers, media_type=_MEDIA_TYPE)
        body = _closing(file.part(selected.start, selected.count), stack.pop_all())
        return BytesOfSession(body, selected.status, headers=headers, media_type=_MEDIA_TYPE)


@router.get("/text", summary="Read a text file", responses=problems(404, 409, 429))
async def read_text(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    path: FilePath,
    limit: Annotated[int, Query(ge=1, le=_TEXT_LIMIT, description="Bytes that are read at most.")] = 100_000,
) -> Text:
    """The beginning of a file as text."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        async with session.files.open_download(path) as file:
            truncated = file.size > limit
            data = b"".join([piece async for piece in file.part(0, min(limit, file.size))])
        # A character that the limit cuts is left out.
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data, final=not truncated)
        return Text(path=shown(path), text=text, size=file.size, truncated=truncated)


@router.head("/archive", include_in_schema=False)
@router.get(
    "/archive",
    summary="Download a folder",
    response_class=StreamingResponse,
    responses={
        **problems(404, 409, 429),
        200: {
            "content": {media_type: next(iter(_BYTES.values())) for media_type in _MEDIA_TYPES.values()},
            "description": "The archive, while it is made.",
        },
    },
)
async def archive(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    path: FolderPath,
    request: Request,
    output: Annotated[ArchiveFormat, Query(alias="format")] = "tar.gz",
) -> Response:
    """A folder (or file) as an archive, built while it is sent. A tar keeps links, a zip leaves them out."""
    live = await service.sessions.running(caller.tenant, session_id)
    async with AsyncExitStack() as stack:
        session = stack.enter_context(live.use())
        pieces = await stack.enter_async_context(session.files.open_archive(path, output))
        name = path.rstrip("/").rsplit("/", 1)[-1]
        headers = {"Content-Disposition": attachment(f"{'files' if name in {'', '.', '..'} else name}.{output}")}
        if request.method == "HEAD":
            # A length that nobody knows yet is not told.
            return StreamingResponse(_nothing(), headers=headers, media_type=_MEDIA_TYPES[output])
        body = _closing(pieces, stack.pop_all())
        return BytesOfSession(body, headers=headers, media_type=_MEDIA_TYPES[output])


@router.post("/folders", status_code=201, summary="Make a folder", responses=problems(404, 409, 507))
async def make_folder(caller: CallerOf, service: ServiceOf, session_id: str, body: NewFolder) -> EntryView:
    """Make a folder and those on the way to it; one that is there will do."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        return _view(await session.files.make_folder(path_of(body.path)))


@router.post("/move", summary="Move or rename", responses=problems(404, 409, 507))
async def move(caller: CallerOf, service: ServiceOf, session_id: str, body: Move) -> EntryView:
    """Move a file or folder, whole or not at all. What lies at the target is replaced only with `overwrite`."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        return _view(await session.files.move(path_of(body.source), path_of(body.target), overwrite=body.overwrite))


@router.delete("", status_code=204, summary="Remove", responses=problems(404, 409))
async def remove(
    caller: CallerOf, service: ServiceOf, session_id: str, path: FilePath, recursive: bool = False
) -> None:
    """Remove a file, a link or a folder; a folder that is not empty only with `recursive`."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        await session.files.remove(path, recursive=recursive)


async def _gathered(pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    # Fewer, larger pieces: each costs a walk through all layers of the server, or of the guest.
    gathered = bytearray()
    async for piece in pieces:
        gathered += piece
        if len(gathered) >= _WRITE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


async def _closing(pieces: AsyncIterable[bytes], stack: AsyncExitStack) -> AsyncGenerator[bytes]:
    async with stack:
        async for piece in _gathered(pieces):
            yield piece


async def _nothing() -> AsyncGenerator[bytes]:
    return
    yield


def _validators(file: GuestFile) -> Validators:
    # The time of any change of it, which no program can set as it likes.
    changed = file.mtime_ns if file.ctime_ns is None else file.ctime_ns
    modified = file.mtime_ns // 1_000_000_000
    # A date that is yet to come, or that no calendar has, is none to compare with.
    known = 0 <= modified <= time.time()
    return Validators(file.size, f'"{changed:x}-{file.size:x}"', modified if known else None)


def _headers(file: Validators, name: str) -> dict[str, str]:
    modified = {} if file.modified is None else {"Last-Modified": formatdate(file.modified, usegmt=True)}
    return {
        **modified,
        "ETag": file.etag,
        "Accept-Ranges": "bytes",
        # Else browsers would take a file of a while ago for good without asking.
        "Cache-Control": "no-cache",
        "Content-Disposition": attachment(name),
        "X-Content-Type-Options": "nosniff",
    }


def _view(entry: Entry) -> EntryView:
    return EntryView(
        name=shown(entry.name),
        encoded=encoded(entry.name),
        type=entry.type,
        size=entry.size,
        mime=entry.mime,
        mode=f"{entry.mode:o}",
        modified_at=datetime.fromtimestamp(min(max(entry.mtime_ns / 1e9, _FIRST_SECOND), _LAST_SECOND), UTC),
        target=None if entry.target is None else shown(entry.target),
    )
