"""Folders in a session: list, describe, make, move and remove. Relative paths start in the session's home folder."""

import mimetypes
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from interpreter.errors import BadPath, GuestMisbehaved, GuestRefused
from interpreter.kernel.control import AgentControl
from interpreter.kernel.paths import MAX_NAME, MAX_PATH, check_path, name_bytes, refusal, sent_path

MAX_PAGE: Final = 1000
"""Most entries of one page."""
_SECONDS: Final = 30.0
_LONG_SECONDS: Final = 300.0
"""For what may have to go through many files."""

_PACKED: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}

Model = TypeVar("Model", bound=BaseModel)


def _name(value: object, longest: int) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    # An older agent shows a byte that is not UTF-8 as four.
    if not isinstance(value, str) or not 1 <= len(value) <= 4 * longest:
        raise ValueError("a name is text or bytes, and no longer than the system has them")
    return value


Name = Annotated[str, PlainValidator(lambda value: _name(value, MAX_NAME))]
LinkTarget = Annotated[str | None, PlainValidator(lambda value: None if value is None else _name(value, MAX_PATH))]


class Entry(BaseModel):
    """One entry of a folder. Bytes of a name that are not UTF-8 are lone surrogates in it; see `kernel.paths`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    name: Name
    type: Literal["file", "folder", "link", "other"]
    size: Annotated[int, Field(ge=0)]
    """In bytes."""
    mode: Annotated[int, Field(ge=0, le=0o7777)]
    mtime_ns: int
    """When it was last written to, in ns since 1970."""
    target: LinkTarget
    """Where a link leads."""

    @property
    def mime(self) -> str:
        """The media type that its name suggests."""
        if self.type == "folder":
            return "inode/directory"
        kind, packed = mimetypes.guess_type(self.name)
        # What `.csv.gz` is called after is in it; it is not that itself.
        return _PACKED.get(packed or "", kind if packed is None else None) or "application/octet-stream"


class Page(BaseModel):
    """Some entries of a folder by name; ``more`` tells whether others follow."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    entries: tuple[Entry, ...]
    more: bool


async def list_folder(
    control: AgentControl,
    path: str,
    *,
    after: str = "",
    limit: int = MAX_PAGE,
    hidden: bool = True,
    timeout: float = _SECONDS,
) -> Page:
    """The first ``limit`` entries of a folder whose names come after ``after``; without ``hidden`` no dot files.

    Raises TransferError, GuestUnresponsive, MachineDied, GuestMisbehaved; ValueError for a limit not in 1 to MAX_PAGE.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise ValueError(f"a page has 1 to {MAX_PAGE} entries")
    # No path: a name as it was listed, which may be longer than any that can be used.
    if len(after) > 4 * MAX_NAME:
        raise BadPath("No name comes from a listing that looks like this")
    arguments = {"after": sent_path(after, control.version), "limit": limit, "hidden": hidden}
    answer = await _call(control, "list", path, f"{path} could not be listed", timeout, **arguments)
    # From lists of msgpack's to the model's tuple.
    entries = answer.get("entries")
    page = _checked(Page, {**answer, "entries": tuple(entries) if isinstance(entries, list) else entries})  # pyright: ignore[reportUnknownArgumentType]
    try:
        names = [name_bytes(entry.name) for entry in page.entries]
    except BadPath:
        raise GuestMisbehaved("the guest listed names that are neither text nor bytes") from None
    # Who goes from page to page must come to an end.
    if len(names) > limit or (page.more and not names) or any(name <= name_bytes(after) for name in names):
        raise GuestMisbehaved("the guest listed what was not asked for")
    if any(b"/" in name or b"\0" in name or name in {b".", b".."} for name in names) or names != sorted(names):
        raise GuestMisbehaved("the guest listed names that no folder has")
    return page


async def describe(control: AgentControl, path: str, *, timeout: float = _SECONDS) -> Entry:
    """What lies at ``path``; of a link at its end the link itself. Raises as ``list_folder`` does."""
    return _checked(Entry, await _call(control, "describe", path, f"{path} could not be looked at", timeout))


async def make_folder(control: AgentControl, path: str, *, timeout: float = _SECONDS) -> Entry:
    """Make a folder and those on the way to it; one that is there will do. Raises as ``list_folder`` does."""
    return _checked(Entry, await _call(control, "make_folder", path, f"{path} could not be made", timeout))


async def move(
    control: AgentControl, source: str, target: str, *, overwrite: bool = False, timeout: float = _LONG_SECONDS
) -> Entry:
    """Move ``source`` to be ``target``, whole or not at all. Raises as ``list_folder`` does.

    A folder at ``target`` is neither entered nor replaced; a file or link there only with ``overwrite``.
    """
    arguments = {"target": sent_path(check_path(target), control.version), "overwrite": overwrite}
    what = f"{source} could not be moved to {target}"
    return _checked(Entry, await _call(control, "move", source, what, timeout, **arguments))


async def remove(control: AgentControl, path: str, *, recursive: bool = False, timeout: float = _LONG_SECONDS) -> None:
    """Remove a file, a link (not what it leads to) or a folder; one that is not empty only with ``recursive``.

    Raises as ``list_folder`` does; BadPath for the home folder and those around it.
    """
    await _call(control, "remove", path, f"{path} could not be removed", timeout, recursive=recursive)


async def _call(
    control: AgentControl, operation: str, path: str, what: str, timeout: float, **arguments: object
) -> dict[str, Any]:
    try:
        sent = sent_path(check_path(path), control.version)
        return await control.call(operation, timeout=timeout, path=sent, **arguments)
    except GuestRefused as error:
        raise refusal(what, error) from error


def _checked(model: type[Model], answer: object) -> Model:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise GuestMisbehaved(f"the guest described no entry: {error.errors()[0]['msg'][:200]}") from None
