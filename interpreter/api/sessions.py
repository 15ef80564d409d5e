"""Routes of sessions: create, list, look, extend, stop."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.clock import Clock
from interpreter.store.paging import Page
from interpreter.store.records import NetworkMode, NewSession, Reason, SessionRecord, State, Timeout, TimeoutMode

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])

_EXAMPLE: JsonDict = {
    "id": "5f0c1f7e1d4b4b5f9a0e6f1b2c3d4e5f",
    "template": "python-data",
    "name": "sales",
    "state": "running",
    "reason": None,
    "message": None,
    "created_at": "2026-11-21T08:00:00Z",
    "started_at": "2026-11-21T08:00:00.4Z",
    "stopped_at": None,
    "last_used_at": "2026-11-21T08:00:00.4Z",
    "expires_at": "2026-11-21T08:15:00.4Z",
    "timeout_seconds": 900,
    "timeout_mode": "total",
    "network_mode": "SANDBOX",
    "cpus": 1,
    "memory_mb": 1024,
    "env": ["REGION"],
    "metadata": {},
    "contexts": ["main"],
}


class SessionView(BaseModel):
    """A session as a caller sees it. Times are UTC; of ``env`` only the names are told."""

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    id: str
    template: str
    name: str | None
    state: State
    reason: Reason | None = Field(description="Why it ended, or is ending.")
    message: str | None = Field(description="What happened, in words, when it failed.")
    created_at: datetime
    started_at: datetime | None
    stopped_at: datetime | None
    last_used_at: datetime
    expires_at: datetime | None = Field(description="When its time is up, unless it is used or extended before.")
    timeout_seconds: int
    timeout_mode: TimeoutMode
    network_mode: NetworkMode
    cpus: int
    memory_mb: int
    env: list[str]
    metadata: dict[str, Any]
    contexts: list[str]


class SessionList(BaseModel):
    """A page of sessions, newest first. ``next`` is the cursor of the page after this one."""

    sessions: list[SessionView]
    next: str | None


class NewTimeout(BaseModel):
    """A session's new timeout, counted as its ``timeout_mode`` says."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"timeout_seconds": 3600}})

    timeout_seconds: Timeout


@router.post(
    "",
    status_code=201,
    summary="Start a session",
    responses={**problems(404, 429, 503, 504, 507), 201: {"description": "It runs."}},
)
async def create(caller: CallerOf, service: ServiceOf, wanted: NewSession, response: Response) -> SessionView:
    """Restore a session from its template's snapshot; it runs when this answers.

    Past the service's limits this answers 429 (yours) or 503 (the host's) with `Retry-After`.
    """
    record = await service.sessions.create(caller.tenant, wanted)
    response.headers["Location"] = f"/v1/sessions/{record.id}"
    return view_of(record, service.sessions.clock)


@router.get("", summary="List sessions", responses=problems())
async def page(
    caller: CallerOf,
    service: ServiceOf,
    state: State | None = None,
    template: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: Annotated[str | None, Query(max_length=200, description="`next` of the page before.")] = None,
) -> SessionList:
    """Sessions that run and sessions that are over, newest first."""
    records, cursor = await service.sessions.page(caller.tenant, Page(limit, after), state=state, template=template)
    return SessionList(sessions=[view_of(record, service.sessions.clock) for record in records], next=cursor)


@router.get("/{session_id}", summary="Look at a session", responses=problems(404))
async def look(caller: CallerOf, service: ServiceOf, session_id: str) -> SessionView:
    """One session, also when it is over."""
    return view_of(await service.sessions.find(caller.tenant, session_id), service.sessions.clock)


@router.delete("/{session_id}", summary="Stop a session", responses=problems(404))
async def stop(caller: CallerOf, service: ServiceOf, session_id: str) -> SessionView:
    """End it at once. Stopping what is over already changes nothing."""
    return view_of(await service.sessions.stop(caller.tenant, session_id), service.sessions.clock)


@router.post("/{session_id}/timeout", summary="Give a session more time", responses=problems(404, 409))
async def extend(caller: CallerOf, service: ServiceOf, session_id: str, wanted: NewTimeout) -> SessionView:
    """Set its timeout anew, counted as its mode says: from its start, or from its last use."""
    record = await service.sessions.extend(caller.tenant, session_id, wanted.timeout_seconds)
    return view_of(record, service.sessions.clock)


def view_of(record: SessionRecord, clock: Clock) -> SessionView:
    """A record as a caller sees it."""
    return SessionView(
        **record.model_dump(
            include={
                *("id", "template", "name", "state", "reason", "message", "timeout_seconds", "timeout_mode"),
                *("network_mode", "cpus", "memory_mb", "metadata", "contexts"),
            }
        ),
        env=sorted(record.env),
        created_at=_time(record.created_at),
        started_at=_time(record.started_at) if record.started_at else None,
        stopped_at=_time(record.stopped_at) if record.stopped_at else None,
        last_used_at=_time(record.last_used_at),
        expires_at=None if record.state.is_over else _time(record.expires_at(clock)),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
