"""Process 1 of a session's machine: brings the system up, warms everything, tells the host, and serves it."""

import asyncio
import contextlib
import gc
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernel_guest import system
from kernel_guest.agent import Agent, GuestSystem
from kernel_guest.context import Places
from kernel_guest.groups import limit_memory, set_up_groups
from kernel_guest.processes import Reaper, Zygote
from kernel_guest.vsock import MEET, Doorbell, HostLink
from kernel_guest.warm import warm_agent

_USER = 1000
_THREADS = 64
_HOME = Path("/home/user")
_KERNEL = Path("/run/interpreter/kernel")
_PACKAGES = _HOME / ".local" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
"""Where pip installs for the user. Python takes it for a place of modules only when it is there at its start."""
_MOUNTS = (
    ("tmpfs", "/run", "tmpfs", "mode=755"),
    ("devpts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),  # noqa: S108  (the shared memory folder itself)
)
_ENVIRONMENT = {
    "HOME": str(_HOME),
    "LANG": "C.UTF-8",
    "LOGNAME": "user",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PATH": f"{_HOME}/.local/bin:/usr/local/bin:/usr/bin:/bin",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "SHELL": "/bin/bash",
    "TERM": "xterm-256color",
    "USER": "user",
}


def bring_up() -> None:
    """Mount what is missing, set the loopback interface up, keep the agent from the out-of-memory killer."""
    for source, target, kind, options in _MOUNTS:
        Path(target).mkdir(exist_ok=True, parents=True)
        system.mount(source, target, kind, options=options)
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        with contextlib.suppress(FileExistsError):
            Path("/dev", name).symlink_to(target)
    system.raise_loopback()
    Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")
    for folder in [path for path in reversed([_PACKAGES, *_PACKAGES.parents]) if path.is_relative_to(_HOME)]:
        folder.mkdir(exist_ok=True)
        os.chown(folder, _USER, _USER)
    _KERNEL.mkdir(parents=True)
    os.chown(_KERNEL, _USER, _USER)
    _KERNEL.chmod(0o700)


async def serve(doorbell: Doorbell) -> None:
    """Start the kernel, warm everything, tell the host, and serve it as long as it is there."""
    reaper = Reaper()
    reaper.start()
    zygote = Zygote(reaper, Path("/etc/interpreter/warmup.py"), drop=True, environment=_ENVIRONMENT)
    groups = set_up_groups()
    agent = Agent(GuestSystem(), Places(_KERNEL, _HOME, _USER, groups), zygote)
    # More streams may stall at once than there are processors.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "files"))
    await agent.start_kernel()
    await warm_agent(agent, _HOME)
    agent.forget_host()
    await agent.prepare_clones()
    gc.collect()
    gc.freeze()
    os.sync()
    limit_memory(groups)
    system.stay_in_memory()
    link = HostLink(agent)
    doorbell.on_ring({MEET: link.meet})
    doorbell.tell("ready")
    await agent.watch_host()


def main() -> None:
    """Run as process 1; whatever goes wrong, the console and the host are told and the machine ends."""
    os.environ.update(_ENVIRONMENT)
    doorbell: Doorbell | None = None
    try:
        bring_up()
        doorbell = Doorbell()
        asyncio.run(serve(doorbell))
    except BaseException as error:
        traceback.print_exc()
        if doorbell is not None:
            doorbell.tell(f"failed {type(error).__name__}: {error}")
    sys.stdout.flush()
    system.restart_machine()


if __name__ == "__main__":
    main()
