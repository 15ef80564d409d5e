"""What Jupyter's clients read and write, and how a session looks to them."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from interpreter.api.http.caller import Caller
from interpreter.api.service import Service
from interpreter.errors import Conflict, NotFound
from interpreter.gateway.clients import KernelState
from interpreter.sessions.live import LiveSession
from interpreter.store.records import Notebook, SessionRecord, State

KernelId = Annotated[str, Path(max_length=100, examples=["5f0c1f7e-1d4b-4b5f-9a0e-6f1b2c3d4e5f"])]
"""A session's id in the form of a UUID, as Jupyter's clients want it."""


class KernelModel(BaseModel):
    """A kernel: a session that runs."""

    id: str
    name: str = Field(description="The kernelspec's name, which is the template's.")
    last_activity: str = Field(
        description="When code last ran, or printed; UTC with six digits of seconds' fractions and a Z."
    )
    execution_state: KernelState
    connections: int = Field(description="Clients that are connected to its channels.")


class NotebookModel(BaseModel):
    """A notebook as older clients want it in a session."""

    path: str
    name: str


class SessionModel(BaseModel):
    """What Jupyter calls a session: a notebook, console or file with the kernel that it uses."""

    id: str
    path: str
    name: str
    type: str
    kernel: KernelModel
    notebook: NotebookModel


class KernelSpecModel(BaseModel):
    """A template as a kernelspec."""

    name: str
    spec: dict[str, Any]
    resources: dict[str, str]


class KernelSpecs(BaseModel):
    """All kernelspecs, by name, and the name of the one that is taken when none is named."""

    default: str
    kernelspecs: dict[str, KernelSpecModel]


class NewKernel(BaseModel):
    """Which kernel to start. Names in ``env`` that are not allowed are left out."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"example": {"name": "python-data"}})

    name: str | None = Field(default=None, max_length=100)
    env: dict[str, str] = {}


def kernel_model(live: LiveSession) -> KernelModel:
    """A session as Jupyter's clients see it."""
    clients = live.clients
    return KernelModel(
        id=live.record.kernel_id,
        name=live.record.template,
        last_activity=time_text(clients.last_activity),
        execution_state=clients.state,
        connections=clients.connections,
    )


def awaited_kernel_model(record: SessionRecord) -> KernelModel:
    """A session that is being taken back after a restart of the service, as Jupyter's clients see it."""
    return KernelModel(
        id=record.kernel_id,
        name=record.template,
        last_activity=time_text(record.last_used_at),
        execution_state="starting",
        connections=0,
    )


def session_model(kernel: KernelModel, notebook: Notebook) -> SessionModel:
    """One of the notebooks that use a kernel."""
    return SessionModel(
        **notebook.model_dump(),
        kernel=kernel,
        notebook=NotebookModel(path=notebook.path, name=notebook.name),
    )


async def kernel_of(service: Service, caller: Caller, kernel_id: str) -> LiveSession:
    """The session behind a kernel's id. Raises NotFound, with the reason when it ran once."""
    session_id = kernel_id.replace("-", "")
    try:
        return await service.sessions.running(caller.tenant, session_id)
    except NotFound:
        raise NotFound(f"Kernel does not exist: {kernel_id}") from None
    except Conflict:
        record = await service.sessions.find(caller.tenant, session_id)
        why = f"{record.reason}: {record.message}" if record.message else f"{record.reason}"
        raise NotFound(f"Kernel does not exist: {kernel_id} ({record.state}, {why})", hint="Start another") from None


def kernels_of(service: Service, caller: Caller) -> list[LiveSession]:
    """All kernels of a caller."""
    return [
        live
        for live in service.sessions.live
        if live.record.tenant == caller.tenant and live.record.state is State.RUNNING
    ]


def awaited_of(service: Service, caller: Caller) -> list[SessionRecord]:
    """All kernels of a caller that are being taken back."""
    return [record for record in service.sessions.awaited if record.tenant == caller.tenant]


def time_text(seconds: float) -> str:
    """A time exactly as Jupyter Server's gateway client parses it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
