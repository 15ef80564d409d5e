"""Kernels over REST: start, list, look, interrupt, restart, shut down."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body, Response

from interpreter.api.http.caller import Caller, CallerOf
from interpreter.api.jupyter.kernelspecs import ANY_PYTHON
from interpreter.api.jupyter.models import (
    KernelId,
    KernelModel,
    NewKernel,
    awaited_kernel_model,
    awaited_of,
    kernel_model,
    kernel_of,
    kernels_of,
)
from interpreter.api.problems import problems
from interpreter.api.service import Service, ServiceOf
from interpreter.errors import InterpreterError, InvalidRequest
from interpreter.sessions.live import LiveSession
from interpreter.store.records import Front, NewSession, TimeoutMode
from interpreter.templates.store import TemplateStore

router = APIRouter(prefix="/api/kernels", tags=["jupyter"])

_ALWAYS_ALLOWED = "KERNEL_"


@router.get("", summary="List kernels", responses=problems())
async def kernels(caller: CallerOf, service: ServiceOf) -> list[KernelModel]:
    """Every session that runs, whatever it was made through."""
    awaited = [awaited_kernel_model(record) for record in awaited_of(service, caller)]
    return [*(kernel_model(live) for live in kernels_of(service, caller)), *awaited]


@router.post(
    "",
    status_code=201,
    summary="Start a kernel",
    responses={**problems(404, 429, 503, 504, 507), 201: {"description": "It runs."}},
)
async def start(
    caller: CallerOf, service: ServiceOf, response: Response, wanted: Annotated[NewKernel | None, Body()] = None
) -> KernelModel:
    """Restore a session whose kernel is used by Jupyter's clients; it is shut down when it is idle for too long."""
    live = await start_kernel(service, caller, wanted or NewKernel())
    model = kernel_model(live)
    response.headers["Location"] = f"/api/kernels/{model.id}"
    return model


@router.get("/{kernel_id}", summary="Look at a kernel", responses=problems(404))
async def look(caller: CallerOf, service: ServiceOf, kernel_id: KernelId) -> KernelModel:
    """One kernel. When it has ended, the answer is 404 and says why."""
    return kernel_model(await kernel_of(service, caller, kernel_id))


@router.delete("/{kernel_id}", status_code=204, summary="Shut a kernel down", responses=problems(404))
async def shut_down(caller: CallerOf, service: ServiceOf, kernel_id: KernelId) -> None:
    """End the kernel and its session."""
    live = await kernel_of(service, caller, kernel_id)
    await service.sessions.stop(caller.tenant, live.record.id)


@router.post("/{kernel_id}/interrupt", status_code=204, summary="Interrupt a kernel", responses=problems(404, 409))
async def interrupt(caller: CallerOf, service: ServiceOf, kernel_id: KernelId) -> None:
    """Interrupt the code that runs now, as Ctrl-C does."""
    live = await kernel_of(service, caller, kernel_id)
    await live.session.interrupt()


@router.post("/{kernel_id}/restart", summary="Restart a kernel", responses=problems(404, 504))
async def restart(caller: CallerOf, service: ServiceOf, kernel_id: KernelId) -> KernelModel:
    """Replace the kernel by a new one: variables are gone, files stay."""
    live = await kernel_of(service, caller, kernel_id)
    with live.use():
        await live.clients.restart()
    return kernel_model(live)


async def start_kernel(service: Service, caller: Caller, wanted: NewKernel) -> LiveSession:
    """A new session for Jupyter's clients. Raises what creating a session raises."""
    settings = service.settings
    allowed = {
        name: value
        for name, value in wanted.env.items()
        if name.startswith(_ALWAYS_ALLOWED) or name in settings.kernel_env
    }
    is_any = wanted.name in ANY_PYTHON and wanted.name not in await asyncio.to_thread(
        TemplateStore(settings.templates_home).list
    )
    try:
        session = NewSession(
            template=None if is_any else wanted.name,
            timeout_seconds=settings.cull_idle_timeout or None,
            timeout_mode=TimeoutMode.IDLE,
            env=allowed,
        )
    except ValueError as error:
        raise InvalidRequest(f"env: {error}") from None
    record = await service.sessions.create(caller.tenant, session, Front.JUPYTER)
    live = service.sessions.live_session(record.id)
    if live is None:
        raise InterpreterError("the kernel ended as soon as it had started")
    return live
