"""What the kernel's end of a relay is, whether its machine runs in this process or in a service."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from interpreter.engine.kernel import OnChange
from interpreter.kernel.splicing import ByteStream


@dataclass(frozen=True, slots=True)
class Wanted:
    """A kernel that somebody wants. ``key`` signs its messages; empty: they are not signed."""

    template: str
    key: bytes = field(repr=False)
    environment: dict[str, str] = field(default_factory=dict[str, str])


class GuestKernel(Protocol):
    """A kernel in its session."""

    def stream(self, channel: str) -> AbstractAsyncContextManager[ByteStream]:
        """A new connection to the socket of a channel. Raises InterpreterError."""
        ...

    async def interrupt(self) -> None:
        """Interrupt the code that runs, as Ctrl-C does. Raises InterpreterError."""
        ...

    async def restart(self) -> None:
        """Replace the kernel, which may have ended, by a new one; files stay. Raises InterpreterError."""
        ...


class Guests(Protocol):
    """Where kernels come from."""

    def kernel(self, wanted: Wanted, on_change: OnChange) -> AbstractAsyncContextManager[GuestKernel]:
        """Restore a session for a kernel and hold it until the block is left. Raises InterpreterError."""
        ...

    async def close(self) -> None:
        """Close what the kernels shared; they are gone by then."""
        ...
