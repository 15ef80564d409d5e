"""Jupyter's sessions: which notebook, console or file uses which kernel. Kept with the kernel's session."""

import asyncio
import contextlib
import uuid
from typing import Any
from weakref import WeakValueDictionary

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from interpreter.api.http.caller import Caller, CallerOf
from interpreter.api.jupyter.kernels import start_kernel
from interpreter.api.jupyter.models import (
    NewKernel,
    SessionModel,
    awaited_kernel_model,
    awaited_of,
    kernel_model,
    kernel_of,
    kernels_of,
    session_model,
)
from interpreter.api.problems import problems
from interpreter.api.service import Service, ServiceOf
from interpreter.errors import InvalidRequest, NotFound
from interpreter.sessions.live import LiveSession
from interpreter.store.records import Front, Notebook

router = APIRouter(prefix="/api/sessions", tags=["jupyter"])

_starting: WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = WeakValueDictionary()
"""Held while a notebook gets its kernel, by tenant, path and type. Gone when nobody starts it."""


class KernelChoice(BaseModel):
    """A kernel that runs, by its id, or a new one, by its kernelspec's name."""

    model_config = ConfigDict(extra="ignore")

    id: str | None = Field(default=None, max_length=100)
    name: str | None = Field(default=None, max_length=100)


class SessionBody(BaseModel):
    """A session to be: ``path`` and ``type`` are needed for a new one."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"example": {"path": "sales.ipynb", "type": "notebook", "name": ""}}
    )

    path: str | None = Field(default=None, max_length=4096)
    type: str | None = Field(default=None, max_length=100)
    name: str | None = Field(default=None, max_length=4096)
    kernel: KernelChoice | None = None
    notebook: dict[str, Any] | None = Field(default=None, description="Older clients give path and name here.")

    def about(self) -> dict[str, str]:
        """What is said of path, name and type."""
        older = {key: str(value) for key, value in (self.notebook or {}).items() if key in {"path", "name"}}
        given = {"path": self.path, "name": self.name, "type": self.type or ("notebook" if self.notebook else None)}
        return {**older, **{key: value for key, value in given.items() if value is not None}}


@router.get("", summary="List Jupyter sessions", responses=problems())
async def sessions(caller: CallerOf, service: ServiceOf) -> list[SessionModel]:
    """All notebooks that use a kernel."""
    kernels = [(kernel_model(live), live.record) for live in kernels_of(service, caller)]
    kernels += [(awaited_kernel_model(record), record) for record in awaited_of(service, caller)]
    return [session_model(kernel, notebook) for kernel, record in kernels for notebook in record.notebooks]


@router.post("", status_code=201, summary="Start a Jupyter session", responses=problems(404, 429, 503, 504, 507))
async def start(caller: CallerOf, service: ServiceOf, wanted: SessionBody, response: Response) -> SessionModel:
    """A kernel for a notebook: the one that it has, the one that is named by id, or a new one."""
    about = wanted.about()
    if not about.get("path") or not about.get("type"):
        raise InvalidRequest("a session has a path and a type")
    # Front ends may ask twice at once: the second is to find what the first has begun.
    async with _starting.setdefault((caller.tenant, about["path"], about["type"]), asyncio.Lock()):
        if found := await _search(service, caller, {"path": about["path"], "type": about["type"]}):
            return session_model(kernel_model(found[0]), found[1])
        live = await _kernel(service, caller, wanted.kernel or KernelChoice())
        notebook = Notebook(id=str(uuid.uuid4()), **{"name": "", **about})
        await live.change(notebooks=[*live.record.notebooks, notebook])
    response.headers["Location"] = f"/api/sessions/{notebook.id}"
    return session_model(kernel_model(live), notebook)


@router.get("/{session_id}", summary="Look at a Jupyter session", responses=problems(404))
async def look(caller: CallerOf, service: ServiceOf, session_id: str) -> SessionModel:
    """One of them."""
    live, notebook = await _find(service, caller, session_id)
    return session_model(kernel_model(live), notebook)


@router.patch("/{session_id}", summary="Change a Jupyter session", responses=problems(404, 429, 503, 504, 507))
async def change(caller: CallerOf, service: ServiceOf, session_id: str, wanted: SessionBody) -> SessionModel:
    """The notebook was renamed, or gets another kernel."""
    live, notebook = await _find(service, caller, session_id)
    changed = notebook.model_copy(update=wanted.about())
    target = live
    if wanted.kernel is not None and (wanted.kernel.id or wanted.kernel.name):
        target = await _kernel(service, caller, wanted.kernel)
    others = [one for one in live.record.notebooks if one.id != notebook.id]
    if target is live:
        await live.change(notebooks=[*others, changed])
    else:
        await live.change(notebooks=others)
        await target.change(notebooks=[*target.record.notebooks, changed])
        if live.record.front is Front.JUPYTER and not others:
            # As Jupyter Server does: nobody can get at the old kernel any more.
            await service.sessions.stop(caller.tenant, live.record.id)
    return session_model(kernel_model(target), changed)


@router.delete("/{session_id}", status_code=204, summary="End a Jupyter session", responses=problems(404))
async def end(caller: CallerOf, service: ServiceOf, session_id: str) -> None:
    """Shut its kernel down, as Jupyter Server does."""
    live, _ = await _find(service, caller, session_id)
    await service.sessions.stop(caller.tenant, live.record.id)


async def _kernel(service: Service, caller: Caller, choice: KernelChoice) -> LiveSession:
    if choice.id:
        return await kernel_of(service, caller, choice.id)
    return await start_kernel(service, caller, NewKernel(name=choice.name))


async def _search(service: Service, caller: Caller, about: dict[str, str]) -> tuple[LiveSession, Notebook] | None:
    """The notebook of which all this is true, and its kernel; one that is being taken back is waited for."""
    for record in awaited_of(service, caller):
        if any(about.items() <= notebook.model_dump().items() for notebook in record.notebooks):
            with contextlib.suppress(NotFound):
                await kernel_of(service, caller, record.id)
    for live in kernels_of(service, caller):
        for notebook in live.record.notebooks:
            if about.items() <= notebook.model_dump().items():
                return live, notebook
    return None


async def _find(service: Service, caller: Caller, session_id: str) -> tuple[LiveSession, Notebook]:
    if found := await _search(service, caller, {"id": session_id}):
        return found
    raise NotFound(f"there is no Jupyter session {session_id[:64]!r}")
