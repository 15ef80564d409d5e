"""Forms of files: bounded, on the disk as far as they are large, and whole."""

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from typing import Final

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

_MAX_FILES: Final = 1000
_MAX_FIELDS: Final = 100
_MAX_FIELD: Final = 64 * 1024
"""Bytes of one field, which is held in memory."""


class _Parser(MultiPartParser):
    """Starlette's, that also tells whether the form came to its end: it would leave out a part that did not."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


@asynccontextmanager
async def open_form(request: Request) -> AsyncGenerator[list[UploadFile]]:
    """The files of a request's form. Fields mean nothing here, but forms have some: they are passed over.

    A file without a name and a byte is a browser's input that nobody filled in. Raises HTTPException.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        yield []
        return
    form = await _parsed(request)
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        yield [file for file in files if file.filename or file.size]
    finally:
        await form.close()


async def _parsed(request: Request) -> FormData:
    async with aclosing(request.stream()) as stream:
        parser = _Parser(
            request.headers, stream, max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise HTTPException(400, error.message) from None
    if not parser.ended:
        await form.close()
        raise HTTPException(400, "the form ends before its last boundary")
    return form
