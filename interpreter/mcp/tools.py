"""The tools: thin functions over a session, whose answers are made for a model."""

import base64
import binascii
import functools
import mimetypes
import posixpath
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import quote

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    TextContent,
    ToolAnnotations,
)
from pydantic import Field

from interpreter.client import AsyncSession, CommandResult, ExecutionResult
from interpreter.errors import InterpreterError
from interpreter.mcp.sandbox import Sandbox
from interpreter.mcp.text import command_text, cut, execution_content

ServerContext = Context[Any, Any]
SandboxOf = Callable[[ServerContext], Sandbox]

MAX_FILE: Final = 5_000_000
"""Bytes of the largest file that is handed to a model."""
_MAX_LISTED: Final = 500
_MAX_LINKS: Final = 8
_HOME: Final = "/home/user"
_SHOWN_IMAGES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})

_SANDBOX: Final = (
    "The sandbox is a Linux virtual machine of your own, without network. Variables, imports and files stay from call "
    "to call until it is restarted or has been unused for a while. The working folder is /home/user."
)
_EXECUTE: Final = f"""Run Python code in a sandbox. Gives what it printed, the value of its last expression, and images.

{_SANDBOX} Packages are those of the template, usually pandas, numpy, matplotlib, scipy and scikit-learn; nothing \
can be installed from the internet. `plt.show()` gives the plot as an image. `!command` and `%magic` work as in a \
notebook. Put files there with upload_file and get them with download_file.

An exception in the code is a normal answer: its traceback comes as text, so that you can correct the code and call \
again. The call fails only when the code could not be run to its end, as with a timeout."""
_COMMAND: Final = f"""Run a shell command (bash) in the sandbox and get what it printed and its exit code.

It sees the same files as execute_code, and starts in {_HOME}. An exit code other than 0 is a normal answer."""
_UPLOAD: Final = f"""Write a file in the sandbox; one that is there already is replaced, and folders are made.

Relative paths start in {_HOME}. Give text as it is, and any other bytes as base64 with encoding="base64"."""
_DOWNLOAD: Final = f"""Get a file of the sandbox: text as text, an image as an image, anything else as base64.

Relative paths start in {_HOME}. Files over {MAX_FILE // 1_000_000} MB are refused, and long text is cut in its \
middle: use execute_code to read a part of such a file."""
_LIST: Final = f"""List a folder of the sandbox: type, size in bytes and name of each entry. "." is {_HOME}."""
_RESTART: Final = """Restart Python in the sandbox: all variables and imports are gone, files stay.

Use it when Python hangs, is out of memory, or must start afresh."""

_ENDINGS: Final = {
    "kernel_died": "Python ended while the code ran, most often because it took too much memory. Variables are gone, "
    "files are still there. Load less data at once, and run the code again.",
    "aborted": "The code was not run, because code before it failed or was interrupted. Run it again.",
    "cancelled": "The code was interrupted before its end. Variables are still there.",
    "lost": "The sandbox ended while the code ran. Call again to get a new one; variables and files are gone.",
}

TimeLimit = Annotated[float, Field(gt=0, le=28_800, description="Seconds after which it is interrupted.")]
Path = Annotated[str, Field(min_length=1, max_length=4096, description=f"Relative paths start in {_HOME}.")]

T = TypeVar("T")


def add_tools(server: MCPServer[Any], sandbox_of: SandboxOf) -> None:
    """Give a server the six tools. ``sandbox_of`` finds the sandbox of the MCP session that a call belongs to."""

    async def execute_code(
        ctx: ServerContext,
        code: Annotated[str, Field(max_length=1_000_000, description="Python code; may have many lines.")],
        timeout_seconds: TimeLimit = 60,
    ) -> CallToolResult:
        notices: list[str] = []
        result = await _use(sandbox_of(ctx), lambda session: session.execute(code, timeout=timeout_seconds), notices)
        return _execution_answer(result, timeout_seconds, notices)

    async def run_command(
        ctx: ServerContext,
        command: Annotated[str, Field(min_length=1, max_length=60_000, description="What bash runs.")],
        timeout_seconds: TimeLimit = 60,
    ) -> CallToolResult:
        notices: list[str] = []
        result = await _use(sandbox_of(ctx), lambda session: session.run(command, timeout=timeout_seconds), notices)
        return _command_answer(result, timeout_seconds, notices)

    async def upload_file(
        ctx: ServerContext,
        path: Path,
        content: Annotated[str, Field(description="The whole file, as text or as base64.")],
        encoding: Literal["text", "base64"] = "text",
    ) -> CallToolResult:
        data = _bytes_of(content, encoding)
        notices: list[str] = []
        await _use(sandbox_of(ctx), lambda session: session.upload(data, path), notices)
        return _answer(f"Wrote {len(data):,} bytes to {_absolute(path)}.", notices)

    async def download_file(ctx: ServerContext, path: Path) -> CallToolResult:
        notices: list[str] = []
        data = await _use(sandbox_of(ctx), lambda session: _read(session, path), notices)
        return CallToolResult(content=[*_texts(notices), _file_content(path, data)])

    async def list_files(ctx: ServerContext, path: Path = ".") -> CallToolResult:
        notices: list[str] = []
        text = await _use(sandbox_of(ctx), lambda session: _listing(session, path), notices)
        return _answer(text, notices)

    async def restart(ctx: ServerContext) -> CallToolResult:
        notices: list[str] = []
        await _use(sandbox_of(ctx), lambda session: session.restart(), notices)
        return _answer("Python was restarted: variables and imports are gone, files stay.", notices)

    # What a sandbox does stays in it; the open world is out of its reach.
    changes = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False)
    writes = changes.model_copy(update={"idempotent_hint": True})
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for function, title, description, annotations in (
        (execute_code, "Run Python code", _EXECUTE, changes),
        (run_command, "Run a shell command", _COMMAND, changes),
        (upload_file, "Write a file", _UPLOAD, writes),
        (download_file, "Get a file", _DOWNLOAD, reads),
        (list_files, "List a folder", _LIST, reads),
        (restart, "Restart Python", _RESTART, writes),
    ):
        server.add_tool(
            _answering(function), title=title, description=description, annotations=annotations, structured_output=False
        )


def _answering(function: Callable[..., Awaitable[CallToolResult]]) -> Callable[..., Awaitable[CallToolResult]]:
    """A tool whose ToolError is its answer, in its own words: the server would put others before them."""

    @functools.wraps(function)
    async def answering(*args: Any, **kwargs: Any) -> CallToolResult:
        try:
            return await function(*args, **kwargs)
        except ToolError as error:
            return CallToolResult(content=_texts([str(error)]), is_error=True)

    return answering


async def _use(sandbox: Sandbox, work: Callable[[AsyncSession], Awaitable[T]], notices: list[str]) -> T:
    """Do ``work``; what fails is told in words that a model can act on. Raises ToolError."""
    try:
        return await sandbox.use(work, notices)
    except InterpreterError as error:
        hint = f" {error.hint}." if error.hint else ""
        raise ToolError("\n".join([*notices, f"{error.message.rstrip('.')}.{hint}"])) from None


def _execution_answer(result: ExecutionResult, limit: float, notices: list[str]) -> CallToolResult:
    status = str(result.status)
    notes = list(notices)
    if result.truncated:
        notes.append("[More output was left out: the code printed or displayed too much.]")
    if status == "timeout":
        state = "Python had to be restarted, so variables are gone" if result.kernel_restarted else "Variables stay"
        notes.append(
            f"The code was interrupted after {limit:g} s. {state}. Make it do less, or give a larger timeout_seconds."
        )
    elif status not in {"ok", "error"}:
        notes.append(_ENDINGS.get(status) or _failure(result.error))
    content = execution_content(result.outputs, notes)
    if not content:
        content = _texts(["The code ran to its end and printed nothing."])
    return CallToolResult(content=content, is_error=status not in {"ok", "error"})


def _command_answer(result: CommandResult, limit: float, notices: list[str]) -> CallToolResult:
    notes = list(notices)
    status = str(result.status)
    if result.truncated:
        notes.append("[More output was left out: the command printed too much.]")
    if status == "timeout":
        notes.append(f"The command was ended after {limit:g} s. Give a larger timeout_seconds if it needs longer.")
    elif status in {"ok", "error"} and result.exit_code is not None:
        notes.append(f"[exit code {result.exit_code}]")
    else:
        notes.append("The command could not be run to its end. Try again.")
    text = command_text(result.stdout, result.stderr, notes)
    return CallToolResult(content=_texts([text]), is_error=status not in {"ok", "error"})


def _failure(error: dict[str, Any] | None) -> str:
    message = str((error or {}).get("message") or "the code could not be run")
    hint = (error or {}).get("hint")
    return f"{message.rstrip('.')}. {hint}." if hint else f"{message.rstrip('.')}. Try again."


def _bytes_of(content: str, encoding: Literal["text", "base64"]) -> bytes:
    if encoding == "text":
        return content.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ToolError('The content is not base64. Encode the bytes as base64, or use encoding="text".') from None


async def _read(session: AsyncSession, path: str) -> bytes:
    # Looked at before it is sent: a file of many gigabytes must not be read to learn that it is too large.
    entry, place = await session.describe(path), path
    for _ in range(_MAX_LINKS):
        if entry.type != "link" or entry.target is None:
            break
        place = posixpath.join(posixpath.dirname(place), entry.target)
        entry = await session.describe(place)
    if entry.type == "file" and entry.size > MAX_FILE:
        raise _too_large(path, entry.size)
    data = await session.download(path)
    if len(data) > MAX_FILE:
        raise _too_large(path, len(data))
    return data


def _too_large(path: str, size: int) -> ToolError:
    return ToolError(
        f"{path} has {size:,} bytes, and at most {MAX_FILE:,} can be downloaded. "
        "Use execute_code to read the part that you need, or to make a smaller file."
    )


def _file_content(path: str, data: bytes) -> ContentBlock:
    mime_type = mimetypes.guess_type(path)[0] or ""
    if mime_type in _SHOWN_IMAGES:
        return ImageContent(type="image", data=base64.b64encode(data).decode(), mime_type=mime_type)
    if b"\0" not in data:
        try:
            return TextContent(type="text", text=cut(data.decode("utf-8")) or "(the file is empty)")
        except UnicodeDecodeError:
            pass
    return EmbeddedResource(
        type="resource",
        resource=BlobResourceContents(
            uri=f"file://{quote(_absolute(path))}",
            blob=base64.b64encode(data).decode(),
            mime_type=mime_type or "application/octet-stream",
        ),
    )


async def _listing(session: AsyncSession, path: str) -> str:
    lines: list[str] = []
    more = False
    async for entry in session.list_files(path):
        if len(lines) == _MAX_LISTED:
            more = True
            break
        lines.append(f"{entry.type:<6} {entry.size:>12,}  {entry.name}")
    if not lines:
        return f"{_absolute(path)} is empty."
    ending = [f"[only the first {_MAX_LISTED} entries are listed]"] if more else []
    return "\n".join([f"{_absolute(path)}:", *lines, *ending])


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join(_HOME, path))


def _answer(text: str, notices: list[str]) -> CallToolResult:
    return CallToolResult(content=_texts([cut("\n".join([*notices, text]))]))


def _texts(texts: list[str]) -> list[ContentBlock]:
    return [TextContent(type="text", text=text) for text in texts]
