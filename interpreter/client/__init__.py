"""A client of the service.

``async with AsyncClient() as client, await client.create_session() as session:
    print((await session.execute("1 + 1")).text)``

``Client`` is the same for code without asyncio. Errors of the service are those of ``interpreter.errors``.
"""

from interpreter.client.aio import AsyncClient, AsyncSession
from interpreter.client.failures import error_from_code, error_from_result
from interpreter.client.models import (
    CommandInfo,
    CommandOutput,
    CommandResult,
    Event,
    ExecutionInfo,
    ExecutionResult,
    FileInfo,
    NotebookResult,
    SessionInfo,
    SessionUsage,
    TemplateInfo,
    UsageGroup,
    UsagePoint,
)
from interpreter.client.stream import EventParser, ServerEvent
from interpreter.client.sync import Client, Session

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "Client",
    "CommandInfo",
    "CommandOutput",
    "CommandResult",
    "Event",
    "EventParser",
    "ExecutionInfo",
    "ExecutionResult",
    "FileInfo",
    "NotebookResult",
    "ServerEvent",
    "Session",
    "SessionInfo",
    "SessionUsage",
    "TemplateInfo",
    "UsageGroup",
    "UsagePoint",
    "error_from_code",
    "error_from_result",
]
