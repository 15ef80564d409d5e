"""Clones of one snapshot: nothing that must be unique is shared, and the clock is right.

The list is the one of Firecracker's "random for clones" and of Jupyter's own state: kernel entropy, Python's
random, uuid1 and uuid4, temporary names, host name, machine id, boot id, the kernel's Jupyter session, its key.
"""

import asyncio
import time

import pytest

from interpreter import Engine, Session
from interpreter.errors import GuestUnresponsive
from interpreter.kernel.connection import connect_kernel

pytestmark = pytest.mark.machine

UNIQUE = {
    "os.urandom": "__import__('os').urandom(16).hex()",
    "getrandom": "__import__('os').getrandom(16).hex()",
    "random.random": "__import__('random').random()",
    "uuid4": "str(__import__('uuid').uuid4())",
    "uuid1 node": "__import__('uuid').getnode()",
    "temporary name": "next(__import__('tempfile')._get_candidate_names())",
    "host name": "__import__('socket').gethostname()",
    "host name by platform": "__import__('platform').node()",
    "machine id": "open('/etc/machine-id').read()",
    "boot id": "open('/proc/sys/kernel/random/boot_id').read()",
    "kernel uuid": "open('/proc/sys/kernel/random/uuid').read()",
    "Jupyter session": "get_ipython().kernel.session.session",
    "Jupyter key": "get_ipython().kernel.session.key",
}


async def ask_all(session: Session) -> dict[str, str | None]:
    return {name: (await session.execute(code)).text for name, code in UNIQUE.items()}


async def test_two_clones_share_nothing_that_must_be_unique(engine: Engine) -> None:
    async with engine.session(template="base") as one, engine.session(template="base") as two:
        first, second = await ask_all(one), await ask_all(two)
    assert all(value is not None for value in (*first.values(), *second.values()))
    assert [name for name in UNIQUE if first[name] == second[name]] == []


async def test_two_kernels_of_one_session_differ_too(session: Session) -> None:
    names = ("random.random", "temporary name")
    before = {name: (await session.execute(UNIQUE[name])).text for name in names}
    await session.restart()
    after = {name: (await session.execute(UNIQUE[name])).text for name in names}
    assert all(before[name] != after[name] for name in names)


CLOCK = """
import socket, threading, time
listener = socket.socket(socket.AF_VSOCK)
listener.bind((socket.VMADDR_CID_ANY, 5001))
listener.listen()
def tell():
    connection, _ = listener.accept()
    while connection.recv(1):
        connection.sendall(repr(time.time()).encode().ljust(32))
threading.Thread(target=tell, daemon=True).start()
"""


async def test_the_clock_is_the_hosts_to_50_ms(session: Session) -> None:
    # Over a stream of the test's own, which takes some ms: what the guest told lies between two looks at our clock.
    assert (await session.execute(CLOCK)).status == "ok"
    reader, writer = await session.vsock.connect(5001)
    ahead, behind = -float("inf"), float("inf")
    async with asyncio.timeout(60):
        # Until it is known to less than what it is asked for, however long a look takes on a busy computer.
        while behind - ahead > 0.020:
            before = time.time()
            writer.write(b"?")
            guest = float(await reader.readexactly(32))
            ahead, behind = max(ahead, guest - time.time()), min(behind, guest - before)
    writer.close()
    assert -0.050 <= ahead <= behind <= 0.050


async def test_messages_signed_with_another_clones_key_are_not_answered(engine: Engine) -> None:
    async with engine.session(template="base") as one:
        async with connect_kernel(one.vsock.connect, key=b"0" * 64, session="stranger") as stranger:
            request = stranger.codec.request("kernel_info_request", {})
            with pytest.raises(GuestUnresponsive):
                await stranger.ask("shell", request, timeout=1.0)
        assert (await one.execute("1")).text == "1"


async def test_a_clone_starts_with_an_empty_history(session: Session) -> None:
    result = await session.execute("len(In), dict(Out), [n for n in dir() if not n.startswith('_')]")
    assert result.execution_count == 1
    assert result.text == "(2, {}, ['In', 'Out', 'exit', 'get_ipython', 'open', 'quit'])"
