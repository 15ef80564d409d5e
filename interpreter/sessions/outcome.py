"""How something that ran ended: executions, commands and notebooks alike. What it gave besides is told in pieces."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Piece = bytes | memoryview


class Outcome(BaseModel):
    """What all of them have."""

    model_config = ConfigDict(frozen=True)

    error: dict[str, Any] | None = Field(
        default=None, description="ename, evalue and traceback of an exception, or code, message and hint of a failure."
    )
    truncated: bool = Field(default=False, description="Whether output past the limit was left out.")
    duration_seconds: float = 0.0

    def event(self) -> dict[str, Any]:
        """The event that ends its journal."""
        return {"type": "done", **self.model_dump()}

    def members(self, more: Mapping[str, Iterable[Piece]]) -> Iterator[Piece]:
        """Itself as a JSON object with ``more`` members, whose values come in pieces of JSON."""
        yield self.model_dump_json().encode()[:-1]
        for name, value in more.items():
            yield f',"{name}":'.encode()
            yield from value
        yield b"}"


class ExecutionOutcome(Outcome):
    """How an execution ended."""

    execution_id: str = ""
    context_id: str = ""
    status: Literal["ok", "error", "aborted", "timeout", "kernel_died", "failed", "cancelled", "lost"]
    execution_count: int | None = None
    kernel_restarted: bool = False


class CommandOutcome(Outcome):
    """How a command ended. ``exit_code`` is negative for a signal."""

    command_id: str
    status: Literal["ok", "error", "timeout", "failed", "cancelled"]
    exit_code: int | None = None


class NotebookOutcome(Outcome):
    """How a notebook ended."""

    session_id: str
    status: Literal["ok", "error", "timeout", "kernel_died", "failed"] = Field(
        description="error: a cell raised. timeout: one took too long. failed: its session ended, for one."
    )
    failed_cell: int | None = Field(default=None, description="The cell that it failed in, counted from 0.")
