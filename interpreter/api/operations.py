"""Routes for whoever runs the service: health, readiness, metrics, templates."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from interpreter.api.metrics import Metrics
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf
from interpreter.templates.overview import known_templates

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    """Whether the service is well."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the service takes new sessions."""

    status: Literal["ready", "full"]
    sessions: int
    taking_back: int = Field(description="Sessions of before a restart that are not back yet.")
    pool: dict[str, int]


class TemplateView(BaseModel):
    """A template: what sessions are restored from."""

    name: str
    built: bool
    outdated: bool = Field(
        default=False, description="What would be built now is another; `interpreter template build NAME` renews it."
    )
    hash: str | None = None
    description: str = ""
    cpus: int | None = None
    memory_mb: int | None = None
    python_packages: dict[str, str] = {}


class TemplateList(BaseModel):
    """All templates that are defined or built."""

    templates: list[TemplateView]


@router.get("/healthz", summary="Is the process well?", responses=problems())
async def healthz() -> Health:
    """Answers as long as the service's loop runs."""
    return Health()


@router.get("/readyz", summary="Does it take sessions?", responses=problems(503))
async def readyz(service: ServiceOf) -> Readiness:
    """Answers 200 when all of the service works; `full` when new sessions would have to wait.

    503 tells what of the work in the background is down, and why. It is begun anew by itself.
    """
    await service.check_ready()
    full = service.sessions.admission.waiting > 0
    ready = dict(service.sessions.pool.ready)
    return Readiness(
        status="full" if full else "ready",
        sessions=len(service.sessions.live),
        taking_back=len(service.sessions.awaited),
        pool=ready,
    )


@router.get("/metrics", summary="Prometheus metrics", responses={**problems(), 200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """In Prometheus' text format."""
    kept: Metrics = request.app.state.metrics
    return Response(generate_latest(kept.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/templates", summary="List templates", tags=["templates"], responses=problems())
async def templates(service: ServiceOf) -> TemplateList:
    """What sessions can be restored from: `built` ones. Templates are built with `interpreter template build`."""
    views: list[TemplateView] = []
    for known in await asyncio.to_thread(known_templates, service.settings):
        if known.built is None:
            views.append(TemplateView(name=known.name, built=False, outdated=known.outdated))
            continue
        manifest = known.built.manifest
        definition = manifest.definition
        views.append(
            TemplateView(
                name=known.name,
                built=True,
                outdated=known.outdated,
                hash=manifest.content_hash,
                description=definition.description,
                cpus=definition.cpus,
                memory_mb=definition.memory_mb,
                python_packages=manifest.python_packages,
            )
        )
    return TemplateList(templates=views)
