"""Fake QEMUs in jails of their own, each with a device's process beside it, as the service has them."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from interpreter.device.client import DeviceClient
from interpreter.device.fork import DeviceParent
from tests.vsock.guest import GUEST_CID

ROOT = Path(__file__).parents[2]
# As `interpreter.vm.jail` has it.
_AS_ANOTHER = (
    *("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP", "--"),
    *("setpriv", "--reuid=312345", "--regid=312345", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"),
    "--no-new-privs",
)
_IDENTITY = _AS_ANOTHER if os.geteuid() == 0 else ("--unshare-user", "--")


@dataclass(frozen=True)
class Jailed:
    """A fake QEMU that runs: its process, and the device that it has."""

    pid: int
    device: DeviceClient


@asynccontextmanager
async def jailed(parent: DeviceParent, guest: str = "echo") -> AsyncGenerator[Jailed]:
    """A guest of `tests.device.guests`, in the namespaces that a QEMU has, with its device."""
    ours, theirs = socket.socketpair()
    told, tell = os.pipe2(os.O_CLOEXEC)
    with ours:
        process = await asyncio.create_subprocess_exec(
            *("bwrap", "--info-fd", str(tell), "--dev-bind", "/", "/", "--proc", "/proc", "--die-with-parent"),
            *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--new-session"),
            *_IDENTITY,
            *(sys.executable, "-m", "tests.device.guests", guest, str(theirs.fileno())),
            pass_fds=(theirs.fileno(), tell),
            cwd=ROOT,
        )
        theirs.close()
        os.close(tell)
        try:
            pid = await asyncio.to_thread(_program_of, told)
            pidfd = os.pidfd_open(pid)
            try:
                async with parent.start(ours, pidfd=pidfd, guest_cid=GUEST_CID) as device:
                    ours.close()
                    yield Jailed(pid, device)
            finally:
                os.close(pidfd)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()


def _program_of(told: int) -> int:
    with os.fdopen(told) as info:
        first = json.loads(info.read())["child-pid"]
    children = Path(f"/proc/{first}/task/{first}/children")
    while True:
        found = children.read_text().split()
        # Not before it has become another user, which it does on its way to this program.
        if found and Path(f"/proc/{found[0]}/cmdline").read_bytes().startswith(sys.executable.encode()):
            return int(found[0])


async def echo(device: DeviceClient, data: bytes = b"echo") -> bytes:
    """Send data to the guest and read it back."""
    reader, writer = await device.connect(7)
    writer.write(data)
    answer = await reader.readexactly(len(data))
    writer.transport.abort()
    return answer


def gone(pid: int) -> bool:
    """Whether a process is no more, and was let go of by its parent."""
    return not Path(f"/proc/{pid}").exists()
