"""vsock between the host and a real guest: fifty connections at once, each moving 2 MB of random data both ways,
arrive whole; then the ends: refusal, shutdown of one side, reset, a device whose machine is gone.
"""

import asyncio
import hashlib
import os

import pytest

from interpreter import Session, VsockConnectError

pytestmark = pytest.mark.machine

SERVER = """
import socket, threading
def echo(connection):
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)
def serve(port, handle):
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(128)
    def accept():
        while True:
            threading.Thread(target=handle, args=(listener.accept()[0],), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
serve(5000, echo)
"""
MEGABYTES = 2


async def echo_once(session: Session, data: bytes) -> str:
    reader, writer = await session.vsock.connect(5000)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    digest = hashlib.sha256()
    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        while piece := await reader.read(65536):
            digest.update(piece)
    writer.close()
    return digest.hexdigest()


async def test_fifty_connections_at_once_arrive_whole_both_ways(session: Session) -> None:
    await session.execute(SERVER)
    payloads = [os.urandom(MEGABYTES * 1024 * 1024) for _ in range(50)]
    digests = await asyncio.gather(*(echo_once(session, payload) for payload in payloads))
    assert digests == [hashlib.sha256(payload).hexdigest() for payload in payloads]


async def test_the_guest_connects_to_a_port_that_the_host_listens_on(session: Session) -> None:
    async with session.vsock.listen(7000) as listener:
        execution = asyncio.create_task(
            session.execute(
                "import socket\nc = socket.socket(socket.AF_VSOCK); c.connect((socket.VMADDR_CID_HOST, 7000))\n"
                "c.sendall(b'hello'); c.shutdown(socket.SHUT_WR); c.recv(100)"
            ).result()
        )
        reader, writer, _ = await listener.accept()
        assert await reader.read() == b"hello"
        writer.write(b"welcome")
        writer.close()
        assert (await execution).text == "b'welcome'"


async def test_a_port_that_nobody_listens_on_is_refused_in_both_directions(session: Session) -> None:
    with pytest.raises(VsockConnectError):
        await session.vsock.connect(5999)
    code = (
        "import socket\ntry: socket.socket(socket.AF_VSOCK).connect((2, 7999))\nexcept OSError as e: print(e.strerror)"
    )
    assert "reset" in (await session.execute(code)).stdout


async def test_a_reset_by_the_host_ends_the_guests_stream(session: Session) -> None:
    # Linux tells a reset of an open vsock stream as its end; a write after it fails.
    async with session.vsock.listen(7000) as listener:
        execution = asyncio.create_task(
            session.execute(
                "import socket\nc = socket.socket(socket.AF_VSOCK); c.connect((2, 7000))\nprint(c.recv(1))\n"
                "try: c.send(b'x')\nexcept OSError as e: print(e.strerror)"
            ).result()
        )
        _, writer, _ = await listener.accept()
        writer.transport.abort()
        assert (await execution).stdout == "b''\nBroken pipe\n"


async def test_user_code_cannot_dial_the_hosts_control_port_a_second_time(session: Session) -> None:
    code = "import socket\ntry: socket.socket(socket.AF_VSOCK).connect((2, 1))\nexcept OSError as e: print(e.strerror)"
    assert "reset" in (await session.execute(code)).stdout
    assert (await session.execute("1")).text == "1"


async def test_user_code_cannot_take_the_agents_port(session: Session) -> None:
    code = (
        "import socket\ntry: socket.socket(socket.AF_VSOCK).bind((socket.VMADDR_CID_ANY, 2))\n"
        "except OSError as e: print(e.strerror)"
    )
    assert "Permission denied" in (await session.execute(code)).stdout


async def test_user_code_on_loopback_is_no_host_to_the_agent(session: Session) -> None:
    code = """
import socket
c = socket.socket(socket.AF_VSOCK); c.settimeout(5)
try:
    c.connect((1, 1)); print(c.recv(10))
except OSError as e:
    print(e.strerror)
"""
    assert (await session.execute(code)).stdout.strip() in ("b''", "Connection reset by peer")
