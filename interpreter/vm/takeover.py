"""Machines that outlived the service which started them: found by their name, taken over, or ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from interpreter.errors import MachineDied
from interpreter.vm.channels import CONTROL, DOORBELL, connect
from interpreter.vm.machine import Machine
from interpreter.vm.qmp import connect_qmp

_ANSWER_SECONDS: Final = 10.0


def find_machines() -> dict[str, int]:
    """Every QEMU that runs under a name of ours on this host: its name (`MachineStart.name`) and process id."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        # QEMU itself, not bwrap that carries the same words behind its own.
        if len(words) > 2 and words[1] == b"-name" and b"qemu" in words[0]:
            found[words[2].decode(errors="replace").split(",")[0]] = int(folder.name)
    return found


@asynccontextmanager
async def take_over(pid: int, folder: Path) -> AsyncGenerator[Machine]:
    """Take over the machine of process ``pid`` whose sockets lie in ``folder``, and kill it when the block is left.

    Raises MachineDied when it does not answer.
    """
    async with AsyncExitStack() as stack:
        try:
            ended = _watch(stack, pid)
        except ProcessLookupError:
            raise MachineDied("the machine ended while no service was there") from None
        stack.push_async_callback(_end, pid, ended)
        try:
            sockets = stack.enter_context(ExitStack())
            control, doorbell = (connect(sockets, folder / name) for name in (CONTROL, DOORBELL))
            async with asyncio.timeout(_ANSWER_SECONDS):
                qmp = await stack.enter_async_context(connect_qmp(control))
        except (OSError, TimeoutError) as error:
            raise MachineDied("the machine does not answer any more") from error
        yield Machine(qmp, pid, doorbell, ended)


def kill_machine(pid: int) -> None:
    """Kill a machine with its jail, at once; does not wait."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(os.getpgid(pid), signal.SIGKILL)


def _watch(stack: AsyncExitStack, pid: int) -> asyncio.Future[str]:
    # Not a child of this process: a descriptor of it tells its end.
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)
    ended: asyncio.Future[str] = loop.create_future()

    def told() -> None:
        loop.remove_reader(descriptor)
        ended.set_result("it was killed or crashed")

    loop.add_reader(descriptor, told)
    stack.callback(os.close, descriptor)
    stack.callback(loop.remove_reader, descriptor)
    return ended


async def _end(pid: int, ended: asyncio.Future[str]) -> None:
    if not ended.done():
        kill_machine(pid)
    await asyncio.shield(ended)
