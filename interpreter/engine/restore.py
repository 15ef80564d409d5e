"""From a template's snapshot to a guest that is connected and renewed: the way of every session."""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from interpreter.engine.places import Place
from interpreter.engine.renewal import CLOCK_TOLERANCE_NS, Renewal
from interpreter.engine.scratch import copy_scratch
from interpreter.errors import GuestUnresponsive, InterpreterError, MachineDied
from interpreter.kernel.connection import KernelConnection, connect_kernel
from interpreter.kernel.control import AgentControl, AgentEvent, integer, serve_control
from interpreter.settings import Settings
from interpreter.templates.loaded import LoadedTemplate
from interpreter.vm.command import MachineFiles
from interpreter.vm.jail import new_jail
from interpreter.vm.machine import Machine, MachineStart
from interpreter.vm.programs import find_program
from interpreter.vm.snapshot import restore_machine
from interpreter.vm.takeover import take_over
from interpreter.vsock.backend import VsockDevice
from kernel_guest.frames import CONTROL_PORT

_FIRST_CID = 3
_LAST_CID = 0xFFFFFFFE
_MEET, _PART, _PARTED = b"!", b"-", b"parted\n"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Timings:
    """When a restore got how far, in seconds from its start."""

    marks: dict[str, float] = field(default_factory=dict[str, float])
    started: float = field(default_factory=time.monotonic)

    def mark(self, name: str) -> None:
        """Note that ``name`` is done now."""
        self.marks[name] = time.monotonic() - self.started


@dataclass(frozen=True, slots=True)
class RestoredGuest:
    """A guest that runs, is connected and shares nothing with its clones."""

    machine: Machine
    vsock: VsockDevice
    control: AgentControl
    connection: KernelConnection
    timings: Timings


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of what comes from the guest unasked: its agent's events, and why the guest ended by itself."""

    on_event: Callable[[AgentEvent], None]
    on_end: Callable[[InterpreterError], None]


@asynccontextmanager
async def restore_guest(
    settings: Settings, template: LoadedTemplate, renewal: Renewal, listeners: Listeners, place: Place | None = None
) -> AsyncGenerator[RestoredGuest]:
    """Restore a guest and hold it until the block is left; with a ``place`` it outlives a service that is killed.

    Raises MachineStartFailed, GuestUnresponsive, GuestMisbehaved, DiskFull.
    """
    timings = Timings()
    async with AsyncExitStack() as stack:
        folder = settings.scratch_home if place is None else place.folder
        copying = copy_scratch(template.scratch, folder, named=place is not None)
        scratch = await stack.enter_async_context(copying)
        timings.mark("scratch")
        start = MachineStart(
            spec=template.spec,
            files=MachineFiles(template.memory, template.rootfs, scratch),
            jail=new_jail(settings.jail_uid, kvm=template.spec.uses_kvm, outlives=place is not None),
            qemu=find_program(settings.qemu),
            arguments=[],
        )
        if place is not None:
            start = replace(start, name=place.name, folder=place.folder)
        machine, channel = await stack.enter_async_context(restore_machine(start, template.devices))
        timings.mark("loaded")
        guest = _meet(settings, machine, ("vsock", channel), renewal, listeners, timings)
        yield await stack.enter_async_context(guest)


@asynccontextmanager
async def take_over_guest(
    settings: Settings, pid: int, place: Place, renewal: Renewal, listeners: Listeners
) -> AsyncGenerator[RestoredGuest]:
    """Take over a guest whose service was killed, and hold it. Raises MachineDied, GuestUnresponsive."""
    timings = Timings()
    async with AsyncExitStack() as stack:
        machine = await stack.enter_async_context(take_over(pid, place.folder))
        try:
            async with asyncio.timeout(settings.restore_timeout):
                await _part(machine)
        except TimeoutError:
            raise GuestUnresponsive("the guest did not give up its old device") from None
        name, channel = await machine.add_vsock_channel()
        stack.callback(channel.close)
        guest = _meet(settings, machine, (name, channel), renewal, listeners, timings)
        yield await stack.enter_async_context(guest)


@asynccontextmanager
async def _meet(
    settings: Settings,
    machine: Machine,
    channel: tuple[str, socket.socket],
    renewal: Renewal,
    listeners: Listeners,
    timings: Timings,
) -> AsyncGenerator[RestoredGuest]:
    """Plug in a vsock device, let the guest run, hear from its agent, renew it, connect to its kernel."""
    async with AsyncExitStack() as stack:
        cid = secrets.randbelow(_LAST_CID - _FIRST_CID) + _FIRST_CID
        vsock = await stack.enter_async_context(VsockDevice(channel[1], pid=machine.pid, guest_cid=cid))
        try:
            async with asyncio.timeout(settings.restore_timeout):
                # One stream is taken, the agent's; whoever dials this port later is refused.
                async with vsock.listen(CONTROL_PORT) as listener:
                    await machine.plug_vsock(channel[0])
                    timings.mark("plugged")
                    machine.doorbell.send(_MEET)
                    await machine.run()
                    timings.mark("running")
                    reader, writer, _ = await _unless_ended(machine, vsock, listener.accept())
                timings.mark("connected")
                control = await stack.enter_async_context(
                    serve_control(reader, writer, listeners.on_event, listeners.on_end)
                )
                await _renew(control, renewal, settings.restore_timeout)
                timings.mark("renewed")
                connection = await stack.enter_async_context(
                    connect_kernel(vsock.connect, key=renewal.key, session=renewal.session)
                )
                timings.mark("kernel")
        except TimeoutError:
            raise GuestUnresponsive(
                f"the guest did not answer within {settings.restore_timeout:g} s",
                hint="On a very busy machine raise INTERPRETER_RESTORE_TIMEOUT",
            ) from None
        watchers = [
            asyncio.create_task(_watch_machine(machine, listeners.on_end)),
            asyncio.create_task(_watch_vsock(vsock, listeners.on_end)),
        ]
        try:
            yield RestoredGuest(machine, vsock, control, connection, timings)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.wait(watchers)


async def _part(machine: Machine) -> None:
    """Have the guest give up the vsock device that nobody serves any more. Raises MachineDied."""
    machine.doorbell.send(_PART)
    said = b""
    # What was said before this service connected may still come first.
    while not said.endswith(_PARTED):
        piece = await asyncio.get_running_loop().sock_recv(machine.doorbell, 256)
        if not piece:
            raise MachineDied("the machine ended while it was taken over")
        said = (said + piece)[-256:]


async def _renew(control: AgentControl, renewal: Renewal, timeout: float) -> None:
    answer = await control.call("renew", timeout=timeout, **renewal.arguments())
    # The time travelled with the call; on a slow guest that took long enough to matter, so look again.
    offset = integer(answer, "clock_ns") - time.time_ns()
    for _ in range(3):
        if abs(offset) <= CLOCK_TOLERANCE_NS:
            break
        offset = await control.set_clock(timeout=timeout)


async def _unless_ended(machine: Machine, vsock: VsockDevice, waiting: Coroutine[Any, Any, T]) -> T:
    """Wait for something that can only come while the machine lives. Raises MachineDied, GuestMisbehaved."""
    task = asyncio.ensure_future(waiting)
    ends = [asyncio.ensure_future(machine.wait_ended()), asyncio.ensure_future(vsock.wait_closed())]
    try:
        await asyncio.wait([task, *ends], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise vsock.failure or MachineDied("the machine ended while it was restored")
    finally:
        for other in (task, *ends):
            other.cancel()
        await asyncio.wait([task, *ends])


async def _watch_machine(machine: Machine, on_end: Callable[[InterpreterError], None]) -> None:
    words = await machine.wait_ended()
    on_end(MachineDied(f"the machine ended: {words}"))


async def _watch_vsock(vsock: VsockDevice, on_end: Callable[[InterpreterError], None]) -> None:
    await vsock.wait_closed()
    on_end(vsock.failure or MachineDied("the machine's vsock device was closed"))
