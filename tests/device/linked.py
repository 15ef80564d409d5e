"""A device's relay and the service's client of it, wired as between two processes, on one loop with a fake guest."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from interpreter.device.client import DeviceClient
from interpreter.device.relay import Relay
from tests.vsock.guest import GUEST_CID, FakeMachine

WINDOW = 256 * 1024


@asynccontextmanager
async def linked() -> AsyncGenerator[tuple[FakeMachine, DeviceClient, Relay]]:
    ours, theirs = socket.socketpair()
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    machine = FakeMachine(theirs)
    relay = Relay(ours, far, pid=os.getpid(), guest_cid=GUEST_CID, window=WINDOW)
    running = asyncio.create_task(relay.run())
    try:
        async with DeviceClient(os.getpid(), near, GUEST_CID) as client:
            await machine.plug()
            yield machine, client, relay
    finally:
        machine.close()
        await running
