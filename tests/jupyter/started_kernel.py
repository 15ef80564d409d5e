"""A kernel started by its kernelspec, and the machines that a process has."""

import contextlib
import os
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

PROVISIONED = "interpreter-base"
LAUNCHED = "launched-base"
"""The same without the word of a provisioner, as front ends see it that know none."""


class Started:
    """A kernel that runs, its manager and a client."""

    def __init__(self, name: str, **more: Any) -> None:
        self.manager = KernelManager(kernel_name=name)
        self.manager.start_kernel(**more)
        self.client = self.connect()

    def connect(self) -> BlockingKernelClient:
        client = self.manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        return client

    def run(self, code: str, **more: Any) -> str:
        """What code printed and gave; an exception's name when it raised."""
        said: list[str] = []

        def output(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                said.append(content["text"])
            elif message["msg_type"] == "execute_result":
                said.append(content["data"]["text/plain"])
            elif message["msg_type"] == "error":
                said.append(content["ename"])

        self.client.execute_interactive(code, output_hook=output, timeout=60, **more)
        return "".join(said)

    def stop(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel()


def machines_of(pid: int = 0) -> list[int]:
    """The process ids of the machines that a process has started."""
    found: list[int] = []
    # Threads and processes come and go while they are looked at.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path("/proc", str(pid or os.getpid()), "task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for child in (task / "children").read_text().split():
                    name = Path("/proc", child, "comm").read_text().strip()
                    found += [int(child)] if name.startswith("qemu-system") else machines_of(int(child))
    return found
