"""What Jupyter's clients ask of a server before they use it."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from interpreter.api.http.caller import CallerOf
from interpreter.api.jupyter.models import kernels_of, time_text
from interpreter.api.problems import problems
from interpreter.api.service import ServiceOf

router = APIRouter(tags=["jupyter"])


class Version(BaseModel):
    """This service's version."""

    version: str


class ServerStatus(BaseModel):
    """How much the server is used."""

    started: str
    last_activity: str
    connections: int
    kernels: int


class Identity(BaseModel):
    """Who the caller is, and what the caller may do."""

    identity: dict[str, Any]
    permissions: dict[str, list[str]]


@router.get("/api", summary="Version", responses=problems())
async def about() -> Version:
    """The service's version."""
    return Version(version=version("interpreter"))


@router.get("/api/status", summary="Status", responses=problems())
async def status(caller: CallerOf, service: ServiceOf) -> ServerStatus:
    """Numbers of kernels and connections, and when any of them was last active."""
    clients = [live.clients for live in kernels_of(service, caller)]
    started = service.started_at
    return ServerStatus(
        started=time_text(started),
        last_activity=time_text(max([started, *(one.last_activity for one in clients)])),
        connections=sum(one.connections for one in clients),
        kernels=len(clients),
    )


@router.get("/api/me", summary="Who am I?", responses=problems())
async def me(caller: CallerOf) -> Identity:
    """The caller as this service knows it."""
    name = caller.tenant
    identity = {"username": name, "name": name, "display_name": name, "initials": name[:1], "avatar_url": None}
    return Identity(identity={**identity, "color": None}, permissions={})
