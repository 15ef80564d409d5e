"""Runs the guest's real agent, zygote, relay and kernel on this host, as process 1 of a machine does.

Only what needs a machine of its own is stood in for: the system's clock, entropy and names. Streams come over a
unix socket in the folder given in place of vsock. It ends, with all that it started, when the control stream does.
"""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from kernel_guest import agent as agent_module
from kernel_guest import relay
from kernel_guest.agent import Agent
from kernel_guest.context import Places
from kernel_guest.processes import Reaper, Zygote, become_reaper
from kernel_guest.warm import warm_agent


class StandIn:
    """Takes what a renewal changes of the system, and changes nothing."""

    def renew(self, call: dict[str, Any]) -> None:
        if not all(key in call for key in ("entropy", "clock_ns", "hostname", "machine_id")):
            raise KeyError("the system's part of a renewal")

    def set_clock(self, clock_ns: int) -> int:
        return clock_ns

    def power_off(self) -> None:
        # As the machine's end would: the control stream ends with the agent.
        os.kill(os.getpid(), signal.SIGTERM)


async def listen(agent: Agent, listener: socket.socket) -> None:
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        agent.serve(connection)


async def main(folder: Path) -> None:
    become_reaper()
    reaper = Reaper()
    reaper.start()
    kernel, home = folder / "kernel", folder / "home"
    kernel.mkdir()
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "IPYTHONDIR": str(folder / "ipython")}
    zygote = Zygote(reaper, folder / "no-warmup", drop=False, environment=environment)
    agent = Agent(StandIn(), Places(kernel, home, None), zygote)
    try:
        await agent.start_kernel()
        await warm_agent(agent, home)
        agent.forget_host()
        await agent.prepare_clones()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(str(folder / "agent.sock"))
            listener.listen()
            tasks = [asyncio.create_task(work) for work in (listen(agent, listener), agent.watch_host())]
            control = asyncio.create_task(agent.control(*await asyncio.open_unix_connection(folder / "control.sock")))
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, control.cancel)
            await asyncio.wait({control})
            for task in tasks:
                task.cancel()
    finally:
        await agent.stop()
        zygote.close()


if __name__ == "__main__":
    if len(sys.argv) > 2:
        relay.WELCOME_SECONDS = float(sys.argv[2])
    if len(sys.argv) > 3:
        agent_module.AGENT_VERSION = int(sys.argv[3])
    asyncio.run(main(Path(sys.argv[1])))
