"""What the tools answer: results of the sandbox in words that a model can act on."""

import base64
import mimetypes
import posixpath
import re
from typing import Any, Final
from urllib.parse import quote

from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import BlobResourceContents, CallToolResult, ContentBlock, EmbeddedResource, TextContent

from interpreter.client import AsyncSession, CommandOutput, CommandResult, ExecutionResult
from interpreter.errors import FileNotFound, InterpreterError, MachineDied, SessionEnded, SessionExpired
from interpreter.mcp.images import image_of_file, images_of
from interpreter.mcp.text import IMAGE_TYPES, command_text, cut, execution_text, shown

HOME: Final = "/home/user"
MAX_FILE: Final = 5_000_000
"""Bytes of the largest file that is handed to a model."""
_MAX_LISTED: Final = 500
_MAX_LINKS: Final = 8
_OVER: Final = frozenset({SessionEnded.code, SessionExpired.code, MachineDied.code})
"""Codes of errors after which the sandbox is gone."""
_SHOWN_BYTE: Final = re.compile(r"\\x([89a-f][0-9a-f])")


async def execution_answer(
    session: AsyncSession, result: ExecutionResult, limit: float, notices: list[str]
) -> CallToolResult:
    """What code came to. Python is started again when it has died, so that the next call finds one."""
    status = str(result.status)
    notes = list(notices)
    if result.truncated:
        notes.append("[More output was left out: the code printed or displayed too much.]")
    if status == "kernel_died":
        notes.append(_death(result.error, revived=await _revive(session)))
    elif status not in {"ok", "error"}:
        notes.append(_ending(result, status, limit))
    outputs = shown(result.outputs)
    images, told = await images_of(session, outputs)
    text = execution_text(outputs, [*told, *notes])
    if not text and not images:
        text = "The code ran to its end and printed nothing."
    content: list[ContentBlock] = [*(texts([text]) if text else []), *images]
    return CallToolResult(content=content, is_error=status not in {"ok", "error"})


def command_answer(result: CommandResult, limit: float, notices: list[str]) -> CallToolResult:
    """What a command came to."""
    notes = list(notices)
    status = str(result.status)
    if result.truncated:
        notes.append("[More output was left out: the command printed too much.]")
    if status == "timeout":
        notes.append(
            f"The command was ended after {limit:g} s. Give a larger timeout_seconds if it needs longer, or "
            "background=true to go on meanwhile."
        )
    elif status in {"ok", "error"} and result.exit_code is not None:
        notes.append(f"[exit code {result.exit_code}]")
    elif _is_over(result.error):
        notes.append(_over("the command", result.error))
    else:
        notes.append(_failure(result.error, "the command could not be run to its end"))
    text = command_text(result.stdout, result.stderr, notes)
    return CallToolResult(content=texts([text]), is_error=status not in {"ok", "error"})


def output_answer(found: CommandOutput, notices: list[str]) -> CallToolResult:
    """What a command in the background has printed since the last look."""
    notes = list(notices)
    if found.truncated:
        notes.append("[It printed too much: what came later was left out. Have it write to a file.]")
    if found.state == "running":
        notes.append("[it runs on]")
    else:
        notes.append(f"[exit code {found.exit_code}]" if found.exit_code is not None else "[it was ended]")
    return CallToolResult(content=texts([command_text(found.stdout, found.stderr, notes)]))


async def file_content(session: AsyncSession, path: str) -> list[ContentBlock]:
    """A file of the sandbox: text, image or bytes. Raises ToolError, and what the client raises."""
    source = await exact(session, path)
    size = await _size_of(session, source)
    is_image = mimetypes.guess_type(path)[0] in IMAGE_TYPES
    if size > MAX_FILE and not is_image:
        raise _too_large(path, size)
    data = await session.download(source) if size <= MAX_FILE else None
    if is_image:
        images, notes = await image_of_file(session, absolute(path), data)
        if images or notes:
            return [*texts(notes), *images]
    if data is None or len(data) > MAX_FILE:
        raise _too_large(path, size if data is None else len(data))
    return [_bytes_content(path, data)]


async def exact(session: AsyncSession, path: str) -> str:
    """A path as the session has it: a name that is not UTF-8 is listed with ``\\xff`` for a byte, and asked for so."""
    escaped = _SHOWN_BYTE.sub(lambda byte: bytes.fromhex(byte[1]).decode("utf-8", "surrogateescape"), path)
    if escaped == path:
        return path
    try:
        await session.describe(path)
    except FileNotFound:
        # Bytes beside each other may be a character together.
        return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return path


async def listing(session: AsyncSession, path: str) -> str:
    """A folder's entries, a line each."""
    lines: list[str] = []
    more = False
    async for entry in session.list_files(await exact(session, path)):
        if len(lines) == _MAX_LISTED:
            more = True
            break
        lines.append(f"{entry.type:<6} {entry.size:>12,}  {entry.name}")
    if not lines:
        return f"{absolute(path)} is empty."
    ending = [f"[only the first {_MAX_LISTED} entries are listed]"] if more else []
    return "\n".join([f"{absolute(path)}:", *lines, *ending])


def absolute(path: str) -> str:
    """A path in the sandbox, from its root."""
    return posixpath.normpath(posixpath.join(HOME, path))


def answer(text: str, notices: list[str]) -> CallToolResult:
    """A short text."""
    return CallToolResult(content=texts([cut("\n".join([*notices, text]))]))


def texts(lines: list[str]) -> list[ContentBlock]:
    """Blocks of text."""
    return [TextContent(type="text", text=text) for text in lines]


async def _revive(session: AsyncSession) -> bool:
    try:
        await session.restart()
    except InterpreterError:
        return False
    return True


def _death(error: dict[str, Any] | None, *, revived: bool) -> str:
    message = str((error or {}).get("message") or "")
    cause = message.partition("(")[2].rpartition(")")[0] or message or "for an unknown reason"
    advice = " Load less data at once." if "memory" in cause else ""
    if not revived:
        return (
            f"Python ended while the code ran: {cause}. It could not be started again: call restart. Variables are "
            f"gone, files are still there.{advice}"
        )
    return (
        f"Python ended while the code ran: {cause}. It was started again: variables and imports are gone, files are "
        f"still there.{advice}"
    )


def _ending(result: ExecutionResult, status: str, limit: float) -> str:
    if _is_over(result.error) or status == "lost":
        return _over("the code", result.error)
    match status:
        case "timeout":
            state = "Python had to be restarted, so variables are gone" if result.kernel_restarted else "Variables stay"
            return (
                f"The code was interrupted after {limit:g} s. {state}. Make it do less, or give a larger "
                "timeout_seconds."
            )
        case "aborted":
            return "The code was not run, because code before it failed or was interrupted. Run it again."
        case "cancelled":
            return "The code was given up before its end. Variables are still there."
        case _:
            return _failure(result.error, "the code could not be run")


def _is_over(error: dict[str, Any] | None) -> bool:
    return (error or {}).get("code") in _OVER


def _over(what: str, error: dict[str, Any] | None) -> str:
    why = str((error or {}).get("message") or "").rstrip(".")
    return (
        f"The sandbox ended while {what} ran{f': {why}' if why else ''}. Variables and files are gone; the next call "
        "gets a new sandbox."
    )


def _failure(error: dict[str, Any] | None, otherwise: str) -> str:
    message = str((error or {}).get("message") or otherwise)
    hint = (error or {}).get("hint")
    return f"{message.rstrip('.')}. {hint}." if hint else f"{message.rstrip('.')}. Try again."


async def _size_of(session: AsyncSession, path: str) -> int:
    # Looked at before it is sent: a file of many gigabytes must not be read to learn that it is too large.
    entry, place = await session.describe(path), path
    for _ in range(_MAX_LINKS):
        if entry.type != "link" or entry.target is None:
            break
        place = posixpath.join(posixpath.dirname(place), entry.target)
        entry = await session.describe(await exact(session, place))
    return entry.size if entry.type == "file" else 0


def _too_large(path: str, size: int) -> ToolError:
    return ToolError(
        f"{path} has {size:,} bytes, and at most {MAX_FILE:,} can be downloaded. "
        "Use execute_code to read the part that you need, or to make a smaller file."
    )


def _bytes_content(path: str, data: bytes) -> ContentBlock:
    if b"\0" not in data:
        try:
            return TextContent(type="text", text=cut(data.decode("utf-8")) or "(the file is empty)")
        except UnicodeDecodeError:
            pass
    return EmbeddedResource(
        type="resource",
        resource=BlobResourceContents(
            uri=f"file://{quote(absolute(path))}",
            blob=base64.b64encode(data).decode(),
            mime_type=mimetypes.guess_type(path)[0] or "application/octet-stream",
        ),
    )
