"""Routes of files: up, down, list, look, read, make, move, remove, archive. Bytes pass piece by piece."""

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.engine.session import Session
from interpreter.errors import FileExists, FileNotFound, InvalidRequest
from interpreter.kernel.archive import ArchiveFormat
from interpreter.kernel.files import PIECE
from interpreter.kernel.paths import MAX_PATH, check_path
from interpreter.kernel.tree import MAX_PAGE, Entry

router = APIRouter(prefix="/v1/sessions/{session_id}/files", tags=["files"])

FilePath = Annotated[
    str,
    Query(
        alias="path",
        min_length=1,
        max_length=MAX_PATH,
        description="Relative paths start in the session's home folder.",
        examples=["data/sales.csv"],
    ),
]
_BYTES: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_MULTIPART: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    "required": ["file"],
                }
            }
        },
    }
}
_MEDIA_TYPES: Final = {"tar.gz": "application/gzip", "tar": "application/x-tar", "zip": "application/zip"}
_MAX_FILES: Final = 1000
_TEXT_LIMIT: Final = 1_000_000
_WRITE: Final = 256 * 1024


class EntryView(BaseModel):
    """A file, folder or link."""

    name: str
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


class Uploaded(BaseModel):
    """What was written."""

    path: str
    size: int = Field(description="In bytes.")


class UploadedFiles(BaseModel):
    """All that was written."""

    files: list[Uploaded]


class Text(BaseModel):
    """A file's beginning as text; bytes that are no UTF-8 are replaced."""

    path: str
    text: str
    size: int = Field(description="Of the whole file, in bytes.")
    truncated: bool


class NewFolder(BaseModel):
    """A folder to make, with those on the way to it."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"path": "results/2026"}})

    path: str = Field(min_length=1, max_length=MAX_PATH)


class Move(BaseModel):
    """What to move where."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"source": "a.csv", "target": "old/a.csv", "overwrite": False}}
    )

    source: str = Field(min_length=1, max_length=MAX_PATH)
    target: str = Field(min_length=1, max_length=MAX_PATH)
    overwrite: bool = False


@router.get("", summary="List a folder", responses=problems(404, 409, 504))
async def list_folder(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    path: Annotated[str, Query(min_length=1, max_length=MAX_PATH)] = ".",
    after: Annotated[str, Query(max_length=1020, description="`next` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 200,
    hidden: bool = True,
) -> Folder:
    """A folder's entries with their sizes and types, by name."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        page = await session.files.list_folder(path, after=after, limit=limit, hidden=hidden)
    cursor = page.entries[-1].name if page.more else None
    return Folder(path=path, entries=[_view(entry) for entry in page.entries], next=cursor)


@router.get("/entry", summary="Look at a file or folder", responses=problems(404, 409, 504))
async def describe(caller: CallerOf, service: ServiceOf, session_id: str, path: FilePath) -> EntryView:
    """Its size, type and times; a link is not followed."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        return _view(await session.files.describe(path))


@router.put(
    "/content",
    status_code=201,
    summary="Upload a file",
    responses=problems(404, 409, 413, 507),
    openapi_extra={"requestBody": {"required": True, "content": _BYTES}},
)
async def upload(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    path: FilePath,
    request: Request,
    overwrite: bool = True,
    mode: Annotated[int, Query(ge=0, le=0o777, description="Permissions, as a number.")] = 0o644,
) -> Uploaded:
    """Write the request's body to a file, whole or not at all. Folders on the way are made."""
    service.sessions.check_accepting()
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        await _check_free(session, path, overwrite=overwrite)
        length = request.headers.get("content-length")
        size = int(length) if length else None
        size = await session.files.upload_stream(request.stream(), path, size=size, mode=mode)
    return Uploaded(path=path, size=size)


@router.post(
    "/upload",
    status_code=201,
    summary="Upload files as a form",
    responses=problems(404, 409, 413, 507),
    openapi_extra=_MULTIPART,
)
async def upload_form(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    request: Request,
    path: Annotated[str, Query(min_length=1, max_length=MAX_PATH, description="The folder.")] = ".",
    overwrite: bool = True,
) -> UploadedFiles:
    """Write each file of a `multipart/form-data` body into a folder, under its own name, each whole or not at all."""
    service.sessions.check_accepting()
    live = await service.sessions.running(caller.tenant, session_id)
    written: list[Uploaded] = []
    # Large files wait on the disk, not in memory.
    async with request.form(max_files=_MAX_FILES, max_fields=0) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise InvalidRequest("the form holds no file", hint="Send multipart/form-data with files in it")
        targets = [_target(path, file.filename or "") for file in files]
        with live.use() as session:
            for target in targets:
                await _check_free(session, target, overwrite=overwrite)
            for target, file in zip(targets, files, strict=True):
                size = await session.files.upload_stream(_pieces_of(file), target, size=file.size)
                written.append(Uploaded(path=target, size=size))
    return UploadedFiles(files=written)


@router.get(
    "/content",
    summary="Download a file",
    response_class=StreamingResponse,
    responses={**problems(404, 409), 200: {"content": _BYTES, "description": "The file's bytes."}},
)
async def download(caller: CallerOf, service: ServiceOf, session_id: str, path: FilePath) -> StreamingResponse:
    """A file's bytes, as they come out of the session."""
    live = await service.sessions.running(caller.tenant, session_id)
    async with AsyncExitStack() as stack:
        session = stack.enter_context(live.use())
        file = await stack.enter_async_context(session.files.open_download(path))
        headers = {"Content-Length": str(file.size), "Content-Disposition": _attachment(path.rsplit("/", 1)[-1])}
        body = _closing(file.pieces, stack.pop_all())
        return StreamingResponse(body, headers=headers, media_type="application/octet-stream")


@router.get("/text", summary="Read a text file", responses=problems(404, 409))
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
            data = b""
            async for piece in file.pieces:
                data += piece
                if len(data) >= limit:
                    break
            return Text(
                path=path,
                text=data[:limit].decode("utf-8", "replace"),
                size=file.size,
                truncated=file.size > limit,
            )


@router.get(
    "/archive",
    summary="Download a folder",
    response_class=StreamingResponse,
    responses={
        **problems(404, 409),
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
    path: Annotated[str, Query(min_length=1, max_length=MAX_PATH)] = ".",
    output: Annotated[ArchiveFormat, Query(alias="format")] = "tar.gz",
) -> StreamingResponse:
    """A folder (or file) as an archive, built while it is sent. A tar keeps links, a zip leaves them out."""
    live = await service.sessions.running(caller.tenant, session_id)
    async with AsyncExitStack() as stack:
        session = stack.enter_context(live.use())
        pieces = await stack.enter_async_context(session.files.open_archive(path, output))
        name = path.rstrip("/").rsplit("/", 1)[-1]
        headers = {"Content-Disposition": _attachment(f"{'files' if name in {'', '.', '..'} else name}.{output}")}
        body = _closing(pieces, stack.pop_all())
        return StreamingResponse(body, headers=headers, media_type=_MEDIA_TYPES[output])


@router.post("/folders", status_code=201, summary="Make a folder", responses=problems(404, 409, 507))
async def make_folder(caller: CallerOf, service: ServiceOf, session_id: str, body: NewFolder) -> EntryView:
    """Make a folder and those on the way to it; one that is there will do."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        return _view(await session.files.make_folder(body.path))


@router.post("/move", summary="Move or rename", responses=problems(404, 409, 507))
async def move(caller: CallerOf, service: ServiceOf, session_id: str, body: Move) -> EntryView:
    """Move a file or folder, whole or not at all. What lies at the target is replaced only with `overwrite`."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        return _view(await session.files.move(body.source, body.target, overwrite=body.overwrite))


@router.delete("", status_code=204, summary="Remove", responses=problems(404, 409))
async def remove(
    caller: CallerOf, service: ServiceOf, session_id: str, path: FilePath, recursive: bool = False
) -> None:
    """Remove a file, a link or a folder; a folder that is not empty only with `recursive`."""
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        await session.files.remove(path, recursive=recursive)


async def _check_free(session: Session, path: str, *, overwrite: bool) -> None:
    if overwrite:
        check_path(path)
        return
    try:
        await session.files.describe(path)
    except FileNotFound:
        return
    raise FileExists(f"{path} is there already", hint="Choose another name, or overwrite it")


def _target(folder: str, name: str) -> str:
    # Browsers send a bare name; others might send a path, which must not lead out of the folder.
    if name in {"", ".", ".."} or "/" in name:
        raise InvalidRequest(f"{name[:200]!r} is not the name of a file")
    return check_path(name if folder == "." else f"{folder.rstrip('/')}/{name}")


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


async def _pieces_of(file: UploadFile) -> AsyncGenerator[bytes]:
    while piece := await file.read(PIECE):
        yield piece


async def _closing(pieces: AsyncIterable[bytes], stack: AsyncExitStack) -> AsyncGenerator[bytes]:
    async with stack:
        async for piece in _gathered(pieces):
            yield piece


def _attachment(name: str) -> str:
    # RFC 6266 and 8187: any name, in characters that every header can carry.
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def _view(entry: Entry) -> EntryView:
    return EntryView(
        name=entry.name,
        type=entry.type,
        size=entry.size,
        mime=entry.mime,
        mode=f"{entry.mode:o}",
        modified_at=datetime.fromtimestamp(min(max(entry.mtime_ns / 1e9, 0), 253_402_300_799), UTC),
        target=entry.target,
    )
