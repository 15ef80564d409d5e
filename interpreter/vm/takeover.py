"""Machines that outlived the service which started them: found by their records, taken over, or ended."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import KernelError, MachineDied, MachineError, VsockError
from interpreter.vm.channels import CONTROL, DOORBELL, connect
from interpreter.vm.machine import Machine
from interpreter.vm.qmp import Qmp, connect_qmp, take_over_qmp
from interpreter.vm.record import MachineRecord, Process, boot_id, open_process, read_record

MACHINES_OWN: Final = (MachineError, VsockError, KernelError)
"""Errors that are a machine's own, or its guest's. All others are of the process that has to do with it."""
_ANSWER_SECONDS: Final = 10.0
_QUIT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class FoundMachine:
    """A machine that runs, by the record in its folder."""

    record: MachineRecord
    folder: Path


def find_machine(folder: Path) -> FoundMachine | None:
    """The machine whose folder this is; None when it does not run (any more)."""
    record = read_record(folder)
    if record is None or record.boot != boot_id():
        return None
    try:
        os.close(open_process(record.qemu))
    except MachineDied:
        return None
    return FoundMachine(record, folder)


@asynccontextmanager
async def take_over(found: FoundMachine) -> AsyncGenerator[Machine]:
    """Take a machine over, halted and without its vsock device, and kill it when the block is left.

    The guest is not asked, so it does not matter what it does. When the block is left by an error that is not the
    machine's own, it stays for another try. Raises MachineDied when it does not answer.
    """
    async with AsyncExitStack() as stack:
        pidfd = open_process(found.record.qemu)
        stack.callback(os.close, pidfd)
        ended = _watch(stack, pidfd)
        stay = False
        try:
            yield await stack.enter_async_context(_taken_over(found, pidfd, ended))
        except BaseException as error:
            stay = not isinstance(error, MACHINES_OWN)
            raise
        finally:
            if not stay:
                await _end(pidfd, ended)


@asynccontextmanager
async def _taken_over(found: FoundMachine, pidfd: int, ended: asyncio.Future[str]) -> AsyncGenerator[Machine]:
    record = found.record
    async with AsyncExitStack() as stack:
        # Before QEMU is asked for anything: it waits for its device's process when it stops or unplugs the device.
        _kill(record.device)
        try:
            async with deadline(_ANSWER_SECONDS):
                doorbell = _connect(stack, found.folder / DOORBELL)
                qmp = await take_over_qmp(stack, lambda: _connect(stack, found.folder / CONTROL))
                machine = Machine(qmp, record.qemu.pid, pidfd, doorbell, ended)
                await machine.stop()
                await machine.unplug_vsock(record.vsock_slot)
        except TimeoutError as error:
            raise MachineDied("the machine does not answer any more") from error
        yield machine


def _connect(stack: AsyncExitStack, path: Path) -> socket.socket:
    with ExitStack() as sockets:
        try:
            connected = connect(sockets, path)
        # Nobody listens. All else is not the machine's: that QEMU has not let go of who was connected before, too.
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise MachineDied("the machine does not answer any more") from error
        stack.push(sockets.pop_all())
    return connected


async def _end(pidfd: int, ended: asyncio.Future[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    await asyncio.shield(ended)


async def end_machine(folder: Path) -> None:
    """End whatever machine still runs in a folder, at once."""
    if (found := find_machine(folder)) is not None:
        _kill(found.record.qemu)
        return
    # One that was never recorded: its service was killed while it started. Who holds the socket is who is meant.
    with contextlib.suppress(OSError, MachineError, TimeoutError), ExitStack() as sockets:
        control = connect(sockets, folder / CONTROL)
        async with deadline(_QUIT_SECONDS), connect_qmp(control) as qmp:
            await qmp.execute("quit")


async def forget_old_channels(qmp: Qmp, channel: str) -> None:
    """Have QEMU let go of the channels of earlier vsock devices; their processes then end by themselves."""
    for chardev in await qmp.execute("query-chardev"):
        label = str(chardev["label"])
        if label.startswith("vsock") and label != channel:
            # Busy until QEMU has put the old device away, which it does in its own time; then it stays.
            with contextlib.suppress(MachineError):
                await qmp.execute("chardev-remove", id=label)


def _kill(process: Process) -> None:
    """Kill a process, if it still is the one that is meant. The rest of its jail ends with a QEMU."""
    with contextlib.suppress(MachineDied, ProcessLookupError):
        pidfd = open_process(process)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _watch(stack: AsyncExitStack, pidfd: int) -> asyncio.Future[str]:
    # Not a child of this process: a descriptor of it tells its end.
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()

    def told() -> None:
        loop.remove_reader(pidfd)
        ended.set_result("it was killed or crashed")

    loop.add_reader(pidfd, told)
    stack.callback(loop.remove_reader, pidfd)
    return ended
