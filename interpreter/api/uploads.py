"""Routes of uploads: a body to a file, a form's files into a folder. Bytes pass piece by piece."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Query, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile

from interpreter.api.http.caller import CallerOf
from interpreter.api.http.forms import open_form
from interpreter.api.http.names import FilePath, FolderPath, form_name, shown
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.engine.session import Session
from interpreter.errors import FileExists, FileNotFound, InvalidRequest
from interpreter.kernel.files import PIECE
from interpreter.kernel.paths import check_path

router = APIRouter(prefix="/v1/sessions/{session_id}/files", tags=["files"])

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


class Uploaded(BaseModel):
    """What was written."""

    path: str
    size: int = Field(description="In bytes.")


class UploadedFiles(BaseModel):
    """All that was written."""

    files: list[Uploaded]


@router.put(
    "/content",
    status_code=201,
    summary="Upload a file",
    responses=problems(404, 409, 413, 415, 429, 507),
    openapi_extra={"requestBody": {"required": True, "content": _BYTES}},
)
async def upload(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    path: FilePath,
    request: Request,
    overwrite: bool = True,
    mode: Annotated[
        str, Query(pattern=r"^(0|0o)?[0-7]{3}$", description="Permissions, in octal as `chmod` has them.")
    ] = "644",
) -> Uploaded:
    """Write the request's body to a file, whole or not at all. Folders on the way are made.

    With `overwrite=false`, or the header `If-None-Match: *`, what is there stays: of many at once one wins.
    """
    if "content-range" in request.headers:
        # RFC 9110, 14.5: what was taken for the whole would cost the file.
        raise HTTPException(400, "a part of a file cannot be uploaded, and Content-Range says that this is one")
    overwrite = overwrite and request.headers.get("if-none-match", "").strip() != "*"
    service.sessions.check_accepting()
    live = await service.sessions.running(caller.tenant, session_id)
    with live.use() as session:
        length = request.headers.get("content-length")
        size = await session.files.upload_stream(
            request.stream(), path, size=int(length) if length else None, mode=int(mode, 8), overwrite=overwrite
        )
    return Uploaded(path=shown(path), size=size)


@router.post(
    "/upload",
    status_code=201,
    summary="Upload files as a form",
    responses=problems(404, 409, 413, 415, 429, 507),
    openapi_extra=_MULTIPART,
)
async def upload_form(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    request: Request,
    path: FolderPath,
    overwrite: bool = True,
) -> UploadedFiles:
    """Write each file of a `multipart/form-data` body into a folder, under its own name, each whole or not at all."""
    service.sessions.check_accepting()
    live = await service.sessions.running(caller.tenant, session_id)
    written: list[Uploaded] = []
    async with open_form(request) as files:
        if not files:
            raise InvalidRequest("the form holds no file", hint="Send multipart/form-data with files in it")
        targets = [_target(path, file) for file in files]
        if not overwrite and len(set(targets)) < len(targets):
            twice = next(target for target in targets if targets.count(target) > 1)
            raise FileExists(f"{twice} is in the form twice", hint="Choose another name, or overwrite it")
        with live.use() as session:
            if not overwrite:
                # Before anything is written; what appears later is found when its turn comes.
                for target in targets:
                    await _check_free(session, target)
            for target, file in zip(targets, files, strict=True):
                size = await session.files.upload_stream(_pieces_of(file), target, size=file.size, overwrite=overwrite)
                written.append(Uploaded(path=shown(target), size=size))
    return UploadedFiles(files=written)


async def _check_free(session: Session, path: str) -> None:
    try:
        await session.files.describe(path)
    except FileNotFound:
        return
    raise FileExists(f"{path} is there already", hint="Choose another name, or overwrite it")


def _target(folder: str, file: UploadFile) -> str:
    name = form_name(file.filename or "", file.headers.get("content-disposition", ""))
    return check_path(name if folder == "." else f"{folder.rstrip('/')}/{name}")


async def _pieces_of(file: UploadFile) -> AsyncGenerator[bytes]:
    while piece := await file.read(PIECE):
        yield piece
