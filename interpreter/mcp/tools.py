"""The tools: thin functions over a session, whose answers are made for a model."""

import base64
import binascii
import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal, TypeVar

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ToolAnnotations
from pydantic import Field

from interpreter.client import AsyncSession
from interpreter.errors import InterpreterError
from interpreter.mcp.answers import (
    HOME,
    MAX_FILE,
    absolute,
    answer,
    command_answer,
    execution_answer,
    file_content,
    listing,
    output_answer,
    texts,
)
from interpreter.mcp.images import BLANKS
from interpreter.mcp.sandbox import Sandbox

ServerContext = Context[Any, Any]
SandboxOf = Callable[[ServerContext], Sandbox]

_SECONDS: Final = 60.0

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

It sees the same files as execute_code, and starts in {HOME}. An exit code other than 0 is a normal answer.

With background=true it is started and runs on while you do other things, as a server or a long job; the answer is its \
command_id, for command_output and stop_command. It ends with the sandbox, which lives on only while it is used."""
_OUTPUT: Final = """Get what a command in the background has printed since the last look, and whether it still runs.

It waits up to wait_seconds for something new."""
_STOP: Final = "End a command that runs in the background, with all that it has started."
_UPLOAD: Final = f"""Write a file in the sandbox; one that is there already is replaced, and folders are made.

Relative paths start in {HOME}. Give text as it is, and any other bytes as base64 with encoding="base64"."""
_DOWNLOAD: Final = f"""Get a file of the sandbox: text as text, an image as an image, anything else as base64.

Relative paths start in {HOME}. A large image is made smaller. Other files over {MAX_FILE // 1_000_000} MB are \
refused, and long text is cut in its middle: use execute_code to read a part of such a file."""
_LIST: Final = f"""List a folder of the sandbox: type, size in bytes and name of each entry. "." is {HOME}."""
_RESTART: Final = """Restart Python in the sandbox: all variables and imports are gone, files stay.

Use it when Python hangs, is out of memory, or must start afresh."""

TimeLimit = Annotated[float, Field(gt=0, le=28_800, description="Seconds after which it is interrupted.")]
CommandId = Annotated[str, Field(min_length=1, max_length=100, description="As run_command gave it.")]
Path = Annotated[str, Field(min_length=1, max_length=4096, description=f"Relative paths start in {HOME}.")]

T = TypeVar("T")


def add_tools(server: MCPServer[Any], sandbox_of: SandboxOf) -> None:
    """Give a server the tools. ``sandbox_of`` finds the sandbox of the MCP session that a call belongs to."""

    async def execute_code(
        ctx: ServerContext,
        code: Annotated[str, Field(max_length=1_000_000, description="Python code; may have many lines.")],
        timeout_seconds: TimeLimit = 60,
    ) -> CallToolResult:
        notices: list[str] = []

        async def run(session: AsyncSession) -> CallToolResult:
            result = await session.execute(code, timeout=timeout_seconds)
            return await execution_answer(session, result, timeout_seconds, notices)

        return await _use(sandbox_of(ctx), run, notices)

    async def run_command(
        ctx: ServerContext,
        command: Annotated[str, Field(min_length=1, max_length=60_000, description="What bash runs.")],
        timeout_seconds: Annotated[
            float | None,
            Field(gt=0, le=28_800, description="Seconds after which it is ended: 60, in the background none."),
        ] = None,
        background: Annotated[bool, Field(description="Whether to answer at once while it runs on.")] = False,
    ) -> CallToolResult:
        notices: list[str] = []
        if background:
            command_id = await _use(
                sandbox_of(ctx), lambda session: session.start_command(command, timeout=timeout_seconds), notices
            )
            return answer(f"It runs in the background. command_id: {command_id}", notices)
        limit = timeout_seconds or _SECONDS
        result = await _use(sandbox_of(ctx), lambda session: session.run(command, timeout=limit), notices)
        return command_answer(result, limit, notices)

    async def command_output(
        ctx: ServerContext,
        command_id: CommandId,
        wait_seconds: Annotated[float, Field(ge=0, le=300, description="Seconds to wait for something new.")] = 0,
    ) -> CallToolResult:
        notices: list[str] = []
        sandbox = sandbox_of(ctx)
        after = sandbox.read_until.get(command_id, 0)
        found = await _use(sandbox, lambda session: session.command_output(command_id, after, wait_seconds), notices)
        sandbox.read_until[command_id] = found.next
        return output_answer(found, notices)

    async def stop_command(ctx: ServerContext, command_id: CommandId) -> CallToolResult:
        notices: list[str] = []
        await _use(sandbox_of(ctx), lambda session: session.stop_command(command_id), notices)
        return answer("The command is ended.", notices)

    async def upload_file(
        ctx: ServerContext,
        path: Path,
        content: Annotated[str, Field(description="The whole file, as text or as base64.")],
        encoding: Literal["text", "base64"] = "text",
    ) -> CallToolResult:
        data = _bytes_of(content, encoding)
        notices: list[str] = []
        await _use(sandbox_of(ctx), lambda session: session.upload(data, path), notices)
        return answer(f"Wrote {len(data):,} bytes to {absolute(path)}.", notices)

    async def download_file(ctx: ServerContext, path: Path) -> CallToolResult:
        notices: list[str] = []
        content = await _use(sandbox_of(ctx), lambda session: file_content(session, path), notices)
        return CallToolResult(content=[*texts(notices), *content])

    async def list_files(ctx: ServerContext, path: Path = ".") -> CallToolResult:
        notices: list[str] = []
        text = await _use(sandbox_of(ctx), lambda session: listing(session, path), notices)
        return answer(text, notices)

    async def restart(ctx: ServerContext) -> CallToolResult:
        notices: list[str] = []
        await _use(sandbox_of(ctx), lambda session: session.restart(), notices)
        return answer("Python was restarted: variables and imports are gone, files stay.", notices)

    # What a sandbox does stays in it; the open world is out of its reach.
    changes = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=False, open_world_hint=False)
    writes = changes.model_copy(update={"idempotent_hint": True})
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for function, title, description, annotations in (
        (execute_code, "Run Python code", _EXECUTE, changes),
        (run_command, "Run a shell command", _COMMAND, changes),
        (command_output, "Read a command's output", _OUTPUT, changes),
        (stop_command, "End a command", _STOP, writes),
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
            return CallToolResult(content=texts([str(error)]), is_error=True)

    return answering


async def _use(sandbox: Sandbox, work: Callable[[AsyncSession], Awaitable[T]], notices: list[str]) -> T:
    """Do ``work``; what fails is told in words that a model can act on. Raises ToolError."""
    try:
        return await sandbox.use(work, notices)
    except InterpreterError as error:
        hint = f" {error.hint}." if error.hint else ""
        raise ToolError("\n".join([*notices, f"{error.message.rstrip('.')}.{hint}"])) from None


def _bytes_of(content: str, encoding: Literal["text", "base64"]) -> bytes:
    if encoding == "text":
        return content.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(content.translate(BLANKS), validate=True)
    except (binascii.Error, ValueError):
        raise ToolError('The content is not base64. Encode the bytes as base64, or use encoding="text".') from None
