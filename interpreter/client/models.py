"""What the service answers. Fields that a newer service adds are left out; times are UTC."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from interpreter.client.names import from_encoded

Event = dict[str, Any]
"""One event of a stream; ``type`` tells what it is."""

CommandStatus = Literal["ok", "error", "timeout", "failed", "cancelled"]
ExecutionStatus = Literal["ok", "error", "aborted", "timeout", "kernel_died", "failed", "cancelled", "lost"]
FileType = Literal["file", "folder", "link", "other"]
NotebookStatus = Literal["ok", "error", "timeout", "kernel_died", "failed"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SessionInfo(_Answer):
    """A session. ``state`` and ``reason`` are open: a newer service may know more of them."""

    id: str
    template: str
    name: str | None = None
    state: str
    """``pending``, ``running``, ``paused``, ``stopping``, ``stopped`` or ``failed``."""
    reason: str | None = None
    """Why it ended, or is ending."""
    message: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    last_used_at: datetime | None = None
    expires_at: datetime | None = None
    timeout_seconds: int
    timeout_mode: str
    network_mode: str
    cpus: int
    memory_mb: int
    env: list[str] = []
    """Names of its environment variables."""
    metadata: dict[str, Any] = {}
    contexts: list[str] = []


class SessionPage(_Answer):
    """Some sessions, newest first. ``next`` is the cursor of the page after this one."""

    sessions: list[SessionInfo]
    next: str | None = None


class TemplateInfo(_Answer):
    """A template: what sessions are restored from."""

    name: str
    built: bool
    outdated: bool = False
    """What would be built now is another: ``interpreter template build NAME`` renews it."""
    hash: str | None = None
    description: str = ""
    cpus: int | None = None
    memory_mb: int | None = None
    python_packages: dict[str, str] = {}


class TemplateList(_Answer):
    """All templates."""

    templates: list[TemplateInfo]


class ExecutionResult(_Answer):
    """How code ended and what it gave.

    ``outputs`` are Jupyter's, with whole mime bundles. ``error`` has ename, evalue and traceback of an exception, or
    code, message and hint of a failure.
    """

    execution_id: str = ""
    context_id: str = "main"
    status: ExecutionStatus
    execution_count: int | None = None
    outputs: list[Event] = []
    error: dict[str, Any] | None = None
    kernel_restarted: bool = False
    truncated: bool = False
    """Whether output past the service's limit was left out."""
    duration_seconds: float = 0.0

    @property
    def stdout(self) -> str:
        """All that was written to standard output."""
        return self._written("stdout")

    @property
    def stderr(self) -> str:
        """All that was written to standard error."""
        return self._written("stderr")

    @property
    def data(self) -> dict[str, Any]:
        """The mime bundle of the last expression's value; empty when it had none."""
        bundles = [output["data"] for output in self.outputs if output.get("type") == "execute_result"]
        return bundles[-1] if bundles else {}

    @property
    def text(self) -> str | None:
        """The last expression's value as plain text; None when it had none."""
        text = self.data.get("text/plain")
        return text if isinstance(text, str) else None

    def _written(self, name: str) -> str:
        return "".join(
            output["text"] for output in self.outputs if output.get("type") == "stream" and output["name"] == name
        )


class ExecutionInfo(_Answer):
    """An execution, with its result once it has ended. Times are seconds since 1970."""

    execution_id: str
    context_id: str
    state: Literal["queued", "running", "done"]
    created_at: float
    ended_at: float | None = None
    result: ExecutionResult | None = None


class ContextName(_Answer):
    """A context by its name."""

    context_id: str


class ContextList(_Answer):
    """A session's contexts."""

    contexts: list[ContextName]


class CommandResult(_Answer):
    """How a shell command ended and what it printed. ``exit_code`` is negative for a signal."""

    command_id: str = ""
    status: CommandStatus
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    error: dict[str, Any] | None = None
    truncated: bool = False
    duration_seconds: float = 0.0


class CommandOutput(_Answer):
    """What a command has printed since an earlier look. ``next`` begins the next one."""

    command_id: str
    state: Literal["running", "done"]
    exit_code: int | None = None
    """Once it has ended; negative for a signal."""
    truncated: bool = False
    """Whether output past the service's limit was left out."""
    next: int
    stdout: str = ""
    stderr: str = ""


class CommandInfo(_Answer):
    """A shell command, with its result once it has ended. Times are seconds since 1970."""

    command_id: str
    command: str
    state: Literal["running", "done"]
    started_at: float
    ended_at: float | None = None
    result: CommandResult | None = None


class NotebookResult(_Answer):
    """How a notebook ended, and the notebook with its outputs, of nbformat 4.5.

    ``error`` has ename, evalue and traceback of an exception, or code, message and hint of a failure;
    ``failed_cell`` is the number of the cell that it ended with, from 0.
    """

    status: NotebookStatus
    session_id: str
    error: dict[str, Any] | None = None
    failed_cell: int | None = None
    truncated: bool = False
    """Whether output past the service's limit was left out."""
    duration_seconds: float = 0.0
    notebook: dict[str, Any]


class FileInfo(_Answer):
    """A file, folder or link of a session. ``size`` is in bytes, ``mode`` in octal digits."""

    name: str
    """A byte that is not UTF-8 is shown as ``\\xff``."""
    encoded: str | None = None
    """The name percent-encoded, when it is not UTF-8."""
    type: FileType
    size: int
    mime: str = "application/octet-stream"
    mode: str
    modified_at: datetime
    target: str | None = None
    """Where a link leads."""

    @property
    def exact_name(self) -> str:
        """The name as the session's methods take it: with a lone surrogate for each byte that is not UTF-8."""
        return self.name if self.encoded is None else from_encoded(self.encoded)


class FilePage(_Answer):
    """Some entries of a folder, by name. ``next`` is the cursor of the page after this one."""

    entries: list[FileInfo]
    next: str | None = None


class FileText(_Answer):
    """A file's beginning as text."""

    text: str
    size: int
    truncated: bool


class Uploaded(_Answer):
    """What was written, with its size in bytes."""

    path: str
    size: int


class Usage(_Answer):
    """What was used, and what that costs at the service's rates."""

    seconds: int
    cpu_seconds: float
    memory_gb_seconds: float
    memory_peak_bytes: int
    cost: float


class UsagePoint(_Answer):
    """What was used in the ``seconds`` seconds at ``second`` (since 1970)."""

    second: int
    seconds: int
    cpu_seconds: float
    memory_bytes: int


class SessionUsage(Usage):
    """What a session has used so far: totals, and the series in the order of time."""

    session_id: str
    series: list[UsagePoint] = []


class UsageGroup(Usage):
    """A sum over the sessions of one tenant, template or day (UTC)."""

    group: str
    sessions: int


class UsageReport(_Answer):
    """Sums over sessions."""

    groups: list[UsageGroup]
