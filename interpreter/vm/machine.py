"""One running QEMU in its jail: started, watched, and ended with everything that belongs to it."""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from interpreter.errors import MachineDied, MachineError, MachineStartFailed
from interpreter.vm.channels import QemuEnds, open_channels, socket_pair
from interpreter.vm.command import TRANSLATION_CACHE_MB, MachineFiles, MachineSpec, qemu_arguments
from interpreter.vm.jail import Jail, Limits
from interpreter.vm.priority import put_group_behind
from interpreter.vm.qmp import Qmp, connect_qmp
from interpreter.vm.spawn import signal_group, spawn
from interpreter.vm.system_calls import open_filter

_OVERHEAD = 2 * 1024**3
"""Address space of QEMU itself: its libraries, heaps and thread stacks (about 1 GiB is mapped, little is used)."""
_STDERR_KEPT = 4096
VSOCK_SLOT: Final = 4
"""The PCI slot of the vsock device. Behind 6 a guest without ACPI's interrupt routing gets no interrupts."""
_EJECT, _BUS_SELECT = 0xAE08, 0xAE10


@dataclass(frozen=True, slots=True)
class MachineStart:
    """What a machine is started from. ``inherited``: more descriptors that the arguments name.

    ``folder``: where it can be taken over later, when its jail lets it outlive the service.
    """

    spec: MachineSpec
    files: MachineFiles
    jail: Jail
    qemu: Path
    arguments: list[str]
    inherited: tuple[int, ...] = ()
    shared_memory: bool = False
    name: str = "interpreter"
    folder: Path | None = None


class Machine:
    """A running QEMU. Made by ``start_machine`` and ``take_over``."""

    def __init__(self, qmp: Qmp, pid: int, pidfd: int, doorbell: socket.socket, ended: asyncio.Future[str]) -> None:
        self.qmp = qmp
        self.pid = pid
        """QEMU's process id, as the host sees it."""
        self.pidfd = pidfd
        """A descriptor of that process."""
        self.doorbell = doorbell
        """The guest's second serial port, non-blocking."""
        self._ended = ended

    async def run(self) -> None:
        """Let the guest run."""
        await self.qmp.execute("cont")

    async def stop(self) -> None:
        """Halt the guest."""
        await self.qmp.execute("stop")

    async def add_vsock_channel(self) -> tuple[str, socket.socket]:
        """A new channel for a vsock device: its name, and our end of its socket, which the caller closes."""
        name = f"vsock-{secrets.token_hex(4)}"
        with ExitStack() as stack:
            ours, theirs = socket_pair(stack)
            await self.qmp.send_descriptor(theirs.fileno(), name)
            address = {"type": "fd", "data": {"str": name}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            await self.qmp.execute("chardev-add", id=name, backend=backend)
            return name, ours.dup()

    async def plug_vsock(self, channel: str = "vsock") -> None:
        """Add the vsock device. Something must serve the other end of its channel's socket meanwhile."""
        name = f"{channel}-device"
        await self.qmp.execute(
            "device_add", driver="vhost-user-vsock-pci", id=name, chardev=channel, addr=f"{VSOCK_SLOT:#x}"
        )

    async def unplug_vsock(self, slot: int = VSOCK_SLOT) -> None:
        """Pull the vsock device out, without asking the guest, which must be halted; nothing happens when it is out.

        QEMU's registers for PCI hotplug are written from outside, as a guest's kernel would: which bus, then a bit for
        the slot that is ejected (QEMU: docs/specs/acpi_pci_hotplug). To the guest it is a surprise removal.
        """
        for command in (f"o/w {_BUS_SELECT:#x} 0", f"o/w {_EJECT:#x} {1 << slot:#x}"):
            await self.qmp.execute("human-monitor-command", **{"command-line": command})

    def ring(self, sign: bytes) -> None:
        """Ring the guest's doorbell. Raises MachineDied."""
        try:
            self.doorbell.send(sign)
        except OSError as error:
            raise MachineDied(f"the machine's doorbell cannot be rung: {error.strerror}") from error

    async def console(self) -> str:
        """The last 64 KiB that the guest wrote on its console, read once."""
        with contextlib.suppress(MachineError):
            text = await self.qmp.execute("ringbuf-read", device="console", size=65536, format="utf8")
            return str(text)
        return ""

    async def wait_ended(self) -> str:
        """Wait until QEMU ends, for whatever cause; returns its last words."""
        return await asyncio.shield(self._ended)

    @property
    def has_ended(self) -> bool:
        """Whether QEMU is gone."""
        return self._ended.done()


class _Ended:
    """QEMU's end, seen once and told to all who wait."""

    def __init__(self) -> None:
        self.future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def watch(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101  (the pipe was asked for)
        kept = b""
        while chunk := await process.stderr.read(4096):
            kept = (kept + chunk)[-_STDERR_KEPT:]
        status = await process.wait()
        words = kept.decode(errors="replace").strip()
        self.future.set_result(words or f"exit status {status}")


@asynccontextmanager
async def start_machine(start: MachineStart) -> AsyncGenerator[tuple[Machine, socket.socket]]:
    """Start QEMU and hold it until the block is left, then kill it. Also gives our end of the vsock channel.

    Raises MachineStartFailed with QEMU's own words when it does not come up.
    """
    async with AsyncExitStack() as stack:
        channels = stack.enter_context(open_channels(start.folder))
        # What only the start needs is closed with it: a session should hold few descriptors.
        starting = stack.enter_context(ExitStack())
        info_read, info_write = os.pipe2(os.O_CLOEXEC)
        starting.callback(os.close, info_read)
        arguments = qemu_arguments(
            start.spec, start.files, channels.theirs, name=start.name, shared_memory=start.shared_memory
        )
        try:
            system_calls = open_filter()
            starting.callback(os.close, system_calls)
            command = start.jail.command(
                start.qemu, [*arguments, *start.arguments], _limits(start), system_calls=system_calls, info=info_write
            )
            process = await spawn(
                command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=(*_descriptors(start, channels.theirs), system_calls, info_write),
            )
        finally:
            os.close(info_write)
        ended = _Ended()
        watcher = asyncio.create_task(ended.watch(process))
        stack.push_async_callback(_kill, process, watcher)
        await put_group_behind(process.pid)
        channels.started()
        try:
            qmp = await stack.enter_async_context(connect_qmp(channels.control))
        except MachineDied as error:
            words = await ended.future
            raise MachineStartFailed(f"QEMU did not start: {words}", hint="See `interpreter doctor`") from error
        pid, pidfd = _qemu_process(await asyncio.to_thread(os.read, info_read, 4096))
        starting.close()
        stack.callback(os.close, pidfd)
        yield Machine(qmp, pid, pidfd, channels.doorbell, ended.future), channels.vsock


def _descriptors(start: MachineStart, ends: QemuEnds) -> tuple[int, ...]:
    files = start.files
    return (files.memory, files.rootfs, files.scratch, ends.control, ends.doorbell, ends.vsock, *start.inherited)


def _qemu_process(info: bytes) -> tuple[int, int]:
    """QEMU's process id and a descriptor of it. Raises MachineStartFailed."""
    # bwrap tells its own process 1 of the new namespace; QEMU answers QMP already, so it is the only child.
    first = cast("dict[str, Any]", json.loads(info))["child-pid"]
    children = Path(f"/proc/{first}/task/{first}/children")
    with contextlib.suppress(OSError, ValueError):
        (pid,) = map(int, children.read_text(encoding="ascii").split())
        pidfd = os.pidfd_open(pid)
        # It was still the child after that, so the number was not another's by then.
        if children.read_text(encoding="ascii").split() == [str(pid)]:
            return pid, pidfd
        os.close(pidfd)
    raise MachineStartFailed("QEMU ended while it started")


def _limits(start: MachineStart) -> Limits:
    memory = start.spec.memory_mb * 1024**2
    return Limits(
        address_space=memory + TRANSLATION_CACHE_MB * 1024**2 + _OVERHEAD,
        file_size=max(os.fstat(start.files.scratch).st_size, memory),
    )


async def _kill(process: asyncio.subprocess.Process, watcher: asyncio.Task[None]) -> None:
    # The group, not bwrap alone: killed in its first moments, before it has arranged for that, it would leave its
    # child behind.
    signal_group(process, signal.SIGKILL)
    # The pipe closes when the last process of the jail is gone, so this also waits for QEMU itself.
    await asyncio.shield(watcher)
