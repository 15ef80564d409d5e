"""Routes of accounting: what a session used, and sums over sessions."""

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from interpreter.accounting.usage import GroupBy, Usage, UsageGroup, UsagePoint
from interpreter.api.http.caller import CallerOf
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.errors import InvalidRequest

router = APIRouter(prefix="/v1", tags=["usage"])

Format = Literal["json", "csv"]
_CSV = {"text/csv": {"schema": {"type": "string"}}}


class SessionUsage(Usage):
    """What a session has used so far: totals, and the series in the order of time."""

    session_id: str
    series: list[UsagePoint]


class UsageReport(BaseModel):
    """Sums over sessions."""

    groups: list[UsageGroup]


@router.get(
    "/sessions/{session_id}/usage",
    summary="What a session used",
    response_model=SessionUsage,
    responses={**problems(404), 200: {"content": _CSV}},
)
async def session_usage(
    caller: CallerOf,
    service: ServiceOf,
    session_id: str,
    start: Annotated[int, Query(alias="from", ge=0, le=2**40, description="Seconds since 1970.")] = 0,
    end: Annotated[int, Query(alias="to", ge=0, le=2**40, description="Seconds since 1970; up to, not with.")] = 2**40,
    output: Annotated[Format, Query(alias="format")] = "json",
) -> Any:
    """Totals, and one row for each second while the session lives, for each minute once it is over.

    CPU is the time that the session's virtual processors ran, memory what the session alone held, each second's most.
    """
    await service.sessions.find(caller.tenant, session_id)
    series = await service.usage.series(session_id, start, end)
    if output == "csv":
        return _csv(UsagePoint, series)
    total = await service.usage.total(session_id)
    return SessionUsage(session_id=session_id, series=series, **total.model_dump())


@router.get(
    "/usage", summary="Sums over sessions", response_model=UsageReport, responses={**problems(), 200: {"content": _CSV}}
)
async def report(
    caller: CallerOf,
    service: ServiceOf,
    start: Annotated[datetime | None, Query(alias="from", description="30 days ago when not given.")] = None,
    end: Annotated[datetime | None, Query(alias="to", description="Now when not given.")] = None,
    group_by: GroupBy = GroupBy.DAY,
    output: Annotated[Format, Query(alias="format")] = "json",
) -> Any:
    """What all your sessions used in a time, by tenant, template or day (UTC), with its cost."""
    end = end or datetime.now(UTC)
    try:
        first = (start or end - timedelta(days=30)).timestamp()
        groups = await service.usage.groups(first, end.timestamp(), group_by, caller.tenant)
    except (OverflowError, ValueError):
        raise InvalidRequest("from or to is not a time that can be counted") from None
    return _csv(UsageGroup, groups) if output == "csv" else UsageReport(groups=groups)


def _csv(model: type[BaseModel], rows: list[Any]) -> Response:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(model.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.model_dump().items()} for row in rows)
    headers = {"Content-Disposition": 'attachment; filename="usage.csv"'}
    return Response(text.getvalue(), media_type="text/csv", headers=headers)


def _cell(value: object) -> object:
    # A spreadsheet would take such a text for a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
