"""A process that plays QEMU and its guest: ``python -m tests.vsock.fake_qemu DESCRIPTOR``; see ``guest.echo_guest``."""

import asyncio
import contextlib
import socket
import sys

from .guest import FakeMachine, GuestEnded, echo_guest


async def main(descriptor: int) -> None:
    machine = FakeMachine(socket.socket(fileno=descriptor))
    await machine.plug()
    with contextlib.suppress(GuestEnded):
        await echo_guest(machine)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
