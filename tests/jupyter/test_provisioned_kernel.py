"""A provisioned kernel does what a local one does: over restarts, interrupts, deaths, and when its client is gone.

Every test has a machine, or more than one, of its own; the relaying happens in this process, as in a front end.
"""

import asyncio
import gc
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import zmq
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from jupyter_client.session import Session
from kernel_client import ToldManager, connected, run
from served import SECONDS
from started_kernel import PROVISIONED, Started, machines_of

from interpreter.errors import HostError
from interpreter.jupyter.embedded import EmbeddedGuests

pytestmark = pytest.mark.machine

Start = Callable[..., Started]
Machines = Callable[[], list[int]]


@pytest.fixture(scope="module", autouse=True)
def own_folder(kernelspecs: Path) -> Generator[None]:
    """Folders of sockets lie in one of this module's own: all programs of the machine have theirs in /tmp."""
    # Not pytest's own folder: a unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


def socket_folders() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("interpreter-kernel-*")}


def relay_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "interpreter-kernels"]


@pytest.fixture
def nothing_left(own_machines: Machines) -> Generator[None]:
    """What a test has started is gone at its end: machines, folders, threads."""
    folders, threads = socket_folders(), relay_threads()
    yield
    assert own_machines() == []
    assert socket_folders() <= folders
    assert len(relay_threads()) <= len(threads)


@pytest.fixture
async def manager(kernelspecs: Path) -> AsyncGenerator[ToldManager]:
    manager = ToldManager(kernel_name=PROVISIONED)
    await manager.start_kernel()
    manager.launched.clear()
    yield manager
    await manager.shutdown_kernel()


async def test_all_that_a_kernel_has_opened_is_closed(
    nothing_left: None, own_machines: Machines, kernelspecs: Path
) -> None:
    kernel = Started(PROVISIONED)
    folder = Path(kernel.manager.ip).parent
    assert len(own_machines()) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    kernel.stop()
    assert not folder.exists()


def test_a_kernel_that_cannot_start_says_what_to_do_and_leaves_nothing(nothing_left: None, kernelspecs: Path) -> None:
    document = json.loads((kernelspecs / PROVISIONED / "kernel.json").read_text())
    document["metadata"]["kernel_provisioner"]["config"]["template"] = "nothing"
    (kernelspecs / "broken").mkdir(exist_ok=True)
    (kernelspecs / "broken" / "kernel.json").write_text(json.dumps(document))
    with pytest.raises(RuntimeError, match="interpreter template build nothing"):
        KernelManager(kernel_name="broken").start_kernel()


def test_restart_keeps_files_ports_and_key_and_drops_variables(own_machines: Machines, kernel: Started) -> None:
    kernel.run("x = 1\nopen('kept', 'w').write('data')")
    before, machine = kernel.manager.get_connection_info(), own_machines()
    for now in (False, True):
        kernel.manager.restart_kernel(now=now)
        kernel.client.wait_for_ready(timeout=SECONDS)
        assert kernel.run("x") == "NameError"
        assert kernel.run("open('kept').read()") == "'data'"
        kernel.run("x = 2")
    assert kernel.manager.get_connection_info() == before
    assert own_machines() == machine


def test_restart_twice_in_a_row_and_under_load(kernel: Started) -> None:
    kernel.client.execute("import time\nwhile True:\n    print('x' * 1000, flush=True)")
    for _ in range(2):
        kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=SECONDS)
    assert kernel.run("1 + 1") == "2"


def test_interrupt(kernel: Started) -> None:
    request = kernel.client.execute("print('go', flush=True)\nwhile True: pass")
    wait_for(kernel, request, "stream")
    kernel.manager.interrupt_kernel()
    assert wait_for(kernel, request, "error")["content"]["ename"] == "KeyboardInterrupt"
    # Until it is idle the kernel aborts what it is asked.
    assert wait_for(kernel, request, "status")["content"]["execution_state"] == "idle"
    assert kernel.run("1 + 1") == "2"


def test_input_is_answered(kernel: Started) -> None:
    def answer(request: dict[str, Any]) -> None:
        kernel.client.input("Ada")

    assert kernel.run("print('hello', input('name? '))", allow_stdin=True, stdin_hook=answer) == "hello Ada\n"


@pytest.mark.parametrize("code", ["import os; os._exit(1)", "import os; os.kill(os.getpid(), 9)"])
async def test_a_kernel_that_dies_is_started_again_by_the_manager(manager: ToldManager, code: str) -> None:
    client = await connected(manager)
    await run(client, "open('kept', 'w').write('data')")
    before = manager.get_connection_info()
    client.execute(code)
    async with asyncio.timeout(SECONDS):
        await manager.launched.wait()
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "open('kept').read()") == "'data'"
    assert manager.get_connection_info() == before
    client.stop_channels()


async def test_a_kernel_whose_machine_is_killed_is_started_again_in_a_new_one(
    own_machines: Machines, manager: ToldManager
) -> None:
    client = await connected(manager)
    await run(client, "open('lost', 'w').write('data')")
    before = manager.get_connection_info()
    (machine,) = own_machines()
    os.kill(machine, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        await manager.launched.wait()
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "import os; os.path.exists('lost')") == "False"
    assert manager.get_connection_info() == before
    assert machine not in own_machines()
    client.stop_channels()


async def test_a_restart_that_fails_may_be_tried_again_for_the_same_clients(
    own_machines: Machines, manager: ToldManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await connected(manager)
    before = manager.get_connection_info()
    manager.stop_restarter()
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGuests, "kernel", refuse)
        os.kill(own_machines()[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="cannot be started: no room"):
            await manager.restart_kernel(now=True)
        assert not await manager.is_alive()
    await manager.restart_kernel(now=True)
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "1 + 1") == "2"
    assert manager.get_connection_info() == before
    client.stop_channels()


async def test_a_kernel_that_could_not_be_restarted_and_was_forgotten_leaves_nothing(
    kernelspecs: Path, own_machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = socket_folders()
    managers = AsyncMultiKernelManager(default_kernel_name=PROVISIONED)
    kernel = await managers.start_kernel()
    with monkeypatch.context() as patch:
        # pytest keeps what is logged, and an exception holds on to where it happened.
        patch.setattr(managers.log, "disabled", True)
        patch.setattr(EmbeddedGuests, "kernel", refuse)
        os.kill(own_machines()[0], signal.SIGKILL)
        with pytest.raises(RuntimeError, match="cannot be started: no room"):
            await managers.restart_kernel(kernel, now=True)
    # Its manager asks the provisioner to clean up nothing: it only lets go of it.
    await managers.shutdown_kernel(kernel, now=True)
    async with asyncio.timeout(SECONDS):
        while socket_folders() != before:
            gc.collect()
            await asyncio.sleep(0.05)
    assert own_machines() == []


@asynccontextmanager
async def refuse(*_: object) -> AsyncGenerator[None]:
    raise HostError("no room")
    yield


async def test_an_exit_status_is_told(kernelspecs: Path) -> None:
    kernel = Started(PROVISIONED)
    try:
        assert kernel.manager.provisioner is not None
        assert await kernel.manager.provisioner.poll() is None
        kernel.client.execute("import os; os._exit(7)")
        assert await kernel.manager.provisioner.wait() == 7
        assert not kernel.manager.has_kernel
    finally:
        kernel.client.stop_channels()
        kernel.manager.cleanup_resources()


async def test_signals_to_a_kernel_that_is_gone_raise_nothing(own_machines: Machines, kernelspecs: Path) -> None:
    kernel = Started(PROVISIONED)
    provisioner = kernel.manager.provisioner
    assert provisioner is not None
    (machine,) = own_machines()
    os.kill(machine, signal.SIGSTOP)
    for number in (0, signal.SIGINT, signal.SIGUSR1):
        await provisioner.send_signal(number)
    os.kill(machine, signal.SIGKILL)
    assert await provisioner.wait() == -9
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        await provisioner.send_signal(number)
    kernel.stop()
    kernel.manager.cleanup_resources()


def test_two_kernels_of_a_process_share_an_engine_and_nothing_else(nothing_left: None, kernelspecs: Path) -> None:
    one, other = Started(PROVISIONED), Started(PROVISIONED)
    try:
        assert len(relay_threads()) == 1
        assert one.manager.session.key != other.manager.session.key
        one.run("x = 1\nopen('mine', 'w').write('data')")
        assert other.run("x") == "NameError"
        assert other.run("import os; os.path.exists('mine')") == "False"
        one.stop()
        assert other.run("1 + 1") == "2"
    finally:
        one.stop()
        other.stop()


def test_heartbeat_answers_while_code_runs(kernel: Started) -> None:
    request = kernel.client.execute("print('go', flush=True)\nwhile True: pass")
    wait_for(kernel, request, "stream")
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"ipc://{kernel.manager.ip}-{kernel.manager.hb_port}")
        socket.send(b"ping \0 pong")
        assert socket.poll(int(SECONDS * 1000))
        assert socket.recv() == b"ping \0 pong"
    kernel.manager.interrupt_kernel()


def test_a_message_with_a_wrong_key_is_ignored(kernel: Started) -> None:
    forged = kernel.manager.client()
    forged.session = Session(key=b"0" * 64)
    forged.start_channels(iopub=False, stdin=False, hb=False, control=False)
    forged.execute("forged = True")
    assert kernel.run("'forged' in globals()") == "False"
    with pytest.raises(Empty):
        forged.shell_channel.get_msg(timeout=0)
    forged.stop_channels()


def test_eight_megabytes_pass_both_ways_byte_for_byte(kernel: Started) -> None:
    sent = [os.urandom(8_000_000), b"", b"\0" * 70_000]
    kernel.run(
        "from comm import create_comm, get_comm_manager\n"
        "def opened(comm, message):\n"
        "    comm.send({'n': 1}, buffers=[bytes(b) for b in message['buffers']][::-1])\n"
        "get_comm_manager().register_target('echo', opened)"
    )
    content = {"comm_id": "c", "target_name": "echo", "data": {}}
    message = kernel.client.session.msg("comm_open", content)
    kernel.client.session.send(kernel.client.shell_channel.socket, message, buffers=sent)
    echoed = wait_for(kernel, message["header"]["msg_id"], "comm_msg")
    assert [bytes(buffer) for buffer in echoed["buffers"]] == sent[::-1]


def test_a_second_client_joins_by_the_connection_file(kernel: Started) -> None:
    code = (
        "import sys\nfrom jupyter_client.blocking.client import BlockingKernelClient as Client\n"
        "client = Client(connection_file=sys.argv[1]); client.load_connection_file(); client.start_channels()\n"
        "client.wait_for_ready(timeout=60); client.execute_interactive('shared = 6 * 7', timeout=60)"
    )
    subprocess.run([sys.executable, "-c", code, kernel.manager.connection_file], check=True, timeout=SECONDS)
    assert kernel.run("shared") == "42"


def test_only_what_is_meant_for_kernels_reaches_the_environment(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_HOST", "secret")
    monkeypatch.setenv("KERNEL_USERNAME", "ada")
    monkeypatch.setenv("KERNEL_LAUNCH_TIMEOUT", "40")
    kernel = start()
    names = "['SECRET_OF_THE_HOST', 'KERNEL_USERNAME', 'KERNEL_LAUNCH_TIMEOUT', 'INTERPRETER_HOME', 'JUPYTER_PATH']"
    assert kernel.run(f"import os; [os.environ.get(name) for name in {names}]") == "[None, 'ada', None, None, None]"


async def test_the_asynchronous_manager(nothing_left: None, kernelspecs: Path) -> None:
    manager = AsyncKernelManager(kernel_name=PROVISIONED)
    await manager.start_kernel()
    client = await connected(manager)
    assert await run(client, "1 + 1") == "2"
    await manager.restart_kernel()
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "2 + 2") == "4"
    client.stop_channels()
    await manager.shutdown_kernel()


async def test_a_start_that_is_broken_off_leaves_nothing(
    nothing_left: None, own_machines: Machines, kernelspecs: Path
) -> None:
    manager = AsyncKernelManager(kernel_name=PROVISIONED)
    starting = asyncio.ensure_future(manager.start_kernel())
    while not own_machines():
        assert not starting.done()
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_what_is_no_client_hurts_nobody(kernel: Started) -> None:
    where = kernel.manager.ip
    silent = [await asyncio.open_unix_connection(f"{where}-{port}") for port in range(1, 6) for _ in range(4)]
    for port in range(1, 6):
        _, writer = await asyncio.open_unix_connection(f"{where}-{port}")
        writer.write(b"\xff" * 100_000)
        writer.close()
    assert kernel.run("1 + 1") == "2"
    for _, writer in silent:
        writer.transport.abort()
    assert kernel.run("2 + 2") == "4"


def test_shutdown_now(nothing_left: None, kernelspecs: Path) -> None:
    kernel = Started(PROVISIONED)
    kernel.client.execute("while True: pass")
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_a_front_end_that_tidies_up_last_meets_no_error(kernelspecs: Path) -> None:
    # What is registered first is called last: after the provisioner's own end.
    late = "import atexit; atexit.register(lambda: manager.shutdown_kernel(now=True))"
    done = subprocess.run([sys.executable, "-c", late + _STARTS], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


_FORKS = """
import os, sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="interpreter-base")
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    reply = client.execute_interactive("print('lives')", timeout=60)
    assert reply["content"]["status"] == "ok"
    client.stop_channels()
    manager.shutdown_kernel()
else:
    sys.exit(5)
"""


def test_a_forked_child_ends_without_its_parents_kernel(kernelspecs: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lives\n", "")


_STARTS = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="interpreter-base")
print(manager.ip, flush=True)
"""


def test_a_client_that_forgets_its_kernel_leaves_nothing(kernelspecs: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _STARTS], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    assert not Path(done.stdout.strip()).parent.exists()


async def test_a_client_that_is_killed_leaves_no_machine_and_its_folder_goes_with_the_next_start(
    kernelspecs: Path,
) -> None:
    code = _STARTS + "sys.stdin.read()"
    client = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert client.stdout is not None
    async with asyncio.timeout(SECONDS):
        folder = Path((await client.stdout.readline()).decode().strip()).parent
    (machine,) = machines_of(client.pid)
    descriptor = os.pidfd_open(machine)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    client.kill()
    async with asyncio.timeout(SECONDS):
        await ended.wait()
        await client.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)
    assert folder.exists()
    Started(PROVISIONED).stop()
    assert not folder.exists()


def wait_for(kernel: Started, request: str, kind: str) -> dict[str, Any]:
    """The first message of iopub of that kind that belongs to a request."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=SECONDS)
        if message["msg_type"] == kind and message["parent_header"].get("msg_id") == request:
            return message
