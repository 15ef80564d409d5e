"""Saving a machine's device state and starting machines from it.

Memory is not in the device state: it is one memfd that the template's machine writes through a shared mapping
and every session maps privately (QEMU's ``x-ignore-shared``, docs/devel/migration).
"""

import os
import socket
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

from interpreter.errors import MachineDied, MachineError, MachineStartFailed
from interpreter.vm.command import restore_arguments
from interpreter.vm.machine import Machine, MachineStart, start_machine
from interpreter.vm.memory import opened_again


async def save_devices(machine: Machine, target: int) -> None:
    """Halt the guest and write its device state to the open file ``target``. Raises MachineError."""
    await machine.stop()
    await machine.qmp.send_descriptor(target, "state")
    await machine.qmp.migrate("fd:state")


@asynccontextmanager
async def restore_machine(start: MachineStart, devices: int) -> AsyncGenerator[tuple[Machine, socket.socket]]:
    """Start a machine with the device state in the open file ``devices``, halted. Raises MachineStartFailed.

    Also gives our end of the channel for its vsock device.
    """
    with ExitStack() as files:
        # A description of its own for each machine: with a shared one they would move each other's place in the file.
        state, rootfs = opened_again(devices), opened_again(start.files.rootfs)
        for descriptor in (state, rootfs):
            files.callback(os.close, descriptor)
        start = replace(
            start,
            files=replace(start.files, rootfs=rootfs),
            arguments=[*start.arguments, *restore_arguments()],
            inherited=(*start.inherited, state),
        )
        async with start_machine(start) as (machine, vsock):
            await _load(machine, state)
            # QEMU has them now.
            files.close()
            yield machine, vsock


async def _load(machine: Machine, devices: int) -> None:
    try:
        await machine.qmp.migrate(f"fd:{devices}", incoming=True)
    except MachineDied as error:
        words = await machine.wait_ended()
        raise MachineStartFailed(f"QEMU refused the snapshot: {words}") from error
    except MachineError as error:
        raise MachineStartFailed(f"QEMU refused the snapshot: {error}") from error
