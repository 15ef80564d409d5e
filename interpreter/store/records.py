"""What the service knows of a session, and what a caller may ask of a new one."""

import re
import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from interpreter.clock import Clock
from interpreter.settings import MAX_TIMEOUT

MAX_METADATA: Final = 16_384
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class State(StrEnum):
    """Where a session is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing will happen to the session any more."""
        return self in {State.STOPPED, State.FAILED}


class Reason(StrEnum):
    """Why a session ended, or is ending."""

    USER = "user"
    TIMEOUT = "timeout"
    CRASH = "crash"
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_DISK = "out_of_disk"
    SHUTDOWN = "shutdown"


class TimeoutMode(StrEnum):
    """From when the timeout counts: ``total`` from the start of the session, ``idle`` from its last use."""

    TOTAL = "total"
    IDLE = "idle"


class NetworkMode(StrEnum):
    """What a session reaches: ``SANDBOX`` no network at all, ``PUBLIC`` the public internet."""

    SANDBOX = "SANDBOX"
    PUBLIC = "PUBLIC"


def _variables(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name[:40]!r} is not the name of an environment variable")
        if "\0" in text:
            raise ValueError(f"the value of {name} holds a NUL")
    if sum(len(name) + len(text) for name, text in value.items()) > 100_000:
        raise ValueError("the variables hold more than 100,000 characters")
    return value


def _small(value: dict[str, Any]) -> dict[str, Any]:
    if len(repr(value)) > MAX_METADATA:
        raise ValueError(f"the metadata is longer than {MAX_METADATA} characters")
    return value


Variables = Annotated[dict[str, str], AfterValidator(_variables)]
Metadata = Annotated[dict[str, Any], AfterValidator(_small)]
Timeout = Annotated[int, Field(ge=1, le=MAX_TIMEOUT)]


class NewSession(BaseModel):
    """What a caller asks for."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, max_length=100, description="Name or hash of a built template.")
    name: str | None = Field(default=None, max_length=200, description="Shown in lists; need not be unique.")
    timeout_seconds: Timeout | None = Field(default=None, description="900 when not given; at most 28,800.")
    timeout_mode: TimeoutMode = Field(
        default=TimeoutMode.TOTAL, description="total: counted from the start; idle: from the last use."
    )
    network_mode: NetworkMode = NetworkMode.SANDBOX
    cpus: int | None = Field(default=None, ge=1, le=64, description="When given, it must be what the template has.")
    memory_mb: int | None = Field(
        default=None, ge=1, le=1_048_576, description="When given, it must be what the template has."
    )
    env: Variables = Field(default={}, description="Environment variables of the kernels.")
    metadata: Metadata = Field(default={}, description="Kept with the session, for the caller's own use.")


class Front(StrEnum):
    """What a session was made through: ``jupyter`` ones are kernels, with what Jupyter's users expect of kernels."""

    REST = "rest"
    JUPYTER = "jupyter"


class Notebook(BaseModel):
    """What a Jupyter front end uses a kernel for; it calls this a session."""

    model_config = ConfigDict(frozen=True)

    id: str
    path: str
    name: str
    type: str


class SessionRecord(BaseModel):
    """One session. Times are seconds since 1970 (UTC)."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    template: str
    name: str | None = None
    state: State
    reason: Reason | None = None
    message: str | None = None
    created_at: float
    started_at: float | None = None
    stopped_at: float | None = None
    last_used_at: float
    started_elapsed: float | None = None
    """As `started_at`, in seconds since the host was started: what timeouts count by, whatever is done to the clock."""
    used_elapsed: float | None = None
    """As `last_used_at`, likewise."""
    timeout_seconds: int
    timeout_mode: TimeoutMode = TimeoutMode.TOTAL
    network_mode: NetworkMode = NetworkMode.SANDBOX
    cpus: int
    memory_mb: int
    env: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    contexts: list[str] = []
    machine: str = ""
    front: Front = Front.REST
    notebooks: list[Notebook] = []

    @property
    def kernel_id(self) -> str:
        """The id as Jupyter's clients want one: with dashes, which their own routes look for."""
        return str(uuid.UUID(self.id))

    def expires_at(self, clock: Clock) -> float:
        """When the session's time is up, unless it is used or extended before, by the time of day that it is now."""
        return round(clock.now() - clock.elapsed() + self.expires_elapsed(clock), 3)

    def expires_elapsed(self, clock: Clock) -> float:
        """The same, in seconds as they pass."""
        is_idle = self.timeout_mode is TimeoutMode.IDLE
        start = self.used_elapsed if is_idle else self.started_elapsed
        if start is None:
            # It does not run yet, or an earlier version wrote it.
            told = self.last_used_at if is_idle else self.started_at or self.created_at
            start = told - clock.now() + clock.elapsed()
        return start + self.timeout_seconds


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """One detached execution. ``result`` is there when it has ended: JSON as clients get it, not parsed here."""

    id: str
    session_id: str
    context: str
    state: Literal["queued", "running", "done"]
    created_at: float
    ended_at: float | None = None
    result: bytes | None = field(default=None, repr=False)
