"""From a template's snapshot to a guest that is connected and renewed: the way of every session."""

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from interpreter.deadline import deadline
from interpreter.device.client import DeviceClient
from interpreter.device.fork import DeviceParent
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
from interpreter.vm.machine import VSOCK_SLOT, Machine, MachineStart
from interpreter.vm.programs import find_program
from interpreter.vm.record import MachineRecord, boot_id, identify, processor_time, write_record
from interpreter.vm.snapshot import restore_machine
from interpreter.vm.takeover import FoundMachine, forget_old_channels, take_over
from kernel_guest.frames import CONTROL_PORT

_FIRST_CID = 3
_LAST_CID = 0xFFFFFFFE
_MEET = b"!"

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
    vsock: DeviceClient
    device_before_ns: int
    """Processor time of the processes that its vsock device had before this one."""
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
    settings: Settings,
    template: LoadedTemplate,
    devices: DeviceParent,
    renewal: Renewal,
    listeners: Listeners,
    place: Place | None = None,
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
        record = _Recording(
            template.manifest.name,
            template.manifest.content_hash,
            template.manifest.agent_version,
            place and place.folder,
        )
        guest = _meet(settings, machine, devices, ("vsock", channel), record, renewal, listeners, timings)
        yield await stack.enter_async_context(guest)


@asynccontextmanager
async def take_over_guest(
    settings: Settings, found: FoundMachine, devices: DeviceParent, renewal: Renewal, listeners: Listeners
) -> AsyncGenerator[RestoredGuest]:
    """Take over a guest whose service was killed, and hold it.

    Its old vsock device is pulled out and a new one plugged in, whatever the guest does meanwhile. Raises MachineDied,
    GuestUnresponsive.
    """
    timings = Timings()
    async with AsyncExitStack() as stack:
        before_ns = found.record.device_before_ns + processor_time(found.record.device)
        machine = await stack.enter_async_context(take_over(found))
        name, channel = await machine.add_vsock_channel()
        stack.callback(channel.close)
        record = _Recording(
            found.record.template, found.record.content_hash, found.record.agent_version, found.folder, before_ns
        )
        guest = _meet(settings, machine, devices, (name, channel), record, renewal, listeners, timings)
        restored = await stack.enter_async_context(guest)
        await forget_old_channels(machine.qmp, name)
        yield restored


@dataclass(frozen=True, slots=True)
class _Recording:
    """What is noted of a machine before its guest runs, and where; nowhere when it ends with its service."""

    template: str
    content_hash: str
    agent_version: int
    folder: Path | None
    device_before_ns: int = 0

    async def write(self, machine: Machine, device: DeviceClient) -> None:
        if self.folder is not None:
            record = MachineRecord(
                boot=boot_id(),
                qemu=identify(machine.pid),
                device=identify(device.pid),
                device_before_ns=self.device_before_ns,
                vsock_slot=VSOCK_SLOT,
                template=self.template,
                content_hash=self.content_hash,
                agent_version=self.agent_version,
            )
            await asyncio.to_thread(write_record, record, self.folder)


@asynccontextmanager
async def _meet(
    settings: Settings,
    machine: Machine,
    devices: DeviceParent,
    channel: tuple[str, socket.socket],
    record: _Recording,
    renewal: Renewal,
    listeners: Listeners,
    timings: Timings,
) -> AsyncGenerator[RestoredGuest]:
    """Plug in a vsock device, let the guest run, hear from its agent, renew it, connect to its kernel."""
    async with AsyncExitStack() as stack:
        cid = secrets.randbelow(_LAST_CID - _FIRST_CID) + _FIRST_CID
        starting = devices.start(channel[1], pidfd=machine.pidfd, guest_cid=cid)
        vsock = await stack.enter_async_context(starting)
        channel[1].close()
        await record.write(machine, vsock)
        timings.mark("device")
        try:
            async with deadline(settings.restore_timeout):
                # One stream is taken, the agent's; whoever dials this port later is refused.
                async with vsock.listen(CONTROL_PORT, backlog=1) as listener:
                    await machine.plug_vsock(channel[0])
                    timings.mark("plugged")
                    machine.ring(_MEET)
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
            yield RestoredGuest(machine, vsock, record.device_before_ns, control, connection, timings)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.wait(watchers)


async def _renew(control: AgentControl, renewal: Renewal, timeout: float) -> None:
    answer = await control.call("renew", timeout=timeout, **renewal.arguments())
    # The time travelled with the call; on a slow guest that took long enough to matter, so look again.
    offset = integer(answer, "clock_ns") - time.time_ns()
    for _ in range(3):
        if abs(offset) <= CLOCK_TOLERANCE_NS:
            break
        offset = await control.set_clock(timeout=timeout)


async def _unless_ended(machine: Machine, vsock: DeviceClient, waiting: Coroutine[Any, Any, T]) -> T:
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


async def _watch_vsock(vsock: DeviceClient, on_end: Callable[[InterpreterError], None]) -> None:
    await vsock.wait_closed()
    on_end(vsock.failure or MachineDied("the machine's vsock device was closed"))
