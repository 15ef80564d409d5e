"""The launcher is what a kernel's process is to those who start it: addresses, key, signals, exit status, end."""

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from kernel_client import ToldManager, connected, run, wait_for
from served import SECONDS
from started_kernel import LAUNCHED, machines_of

pytestmark = pytest.mark.machine

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
Process = asyncio.subprocess.Process


def free_ports() -> dict[str, int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in CHANNELS]
    ports = {f"{channel}_port": one.getsockname()[1] for channel, one in zip(CHANNELS, sockets, strict=True)}
    for one in sockets:
        one.close()
    return ports


def write(path: Path, **about: Any) -> Path:
    file = {
        "transport": "tcp",
        "ip": "127.0.0.1",
        "signature_scheme": "hmac-sha256",
        "kernel_name": "x",
        "key": secrets.token_hex(),
        **free_ports(),
    }
    path.write_text(json.dumps({**file, **about}))
    return path


async def launch(file: Path, *more: str, **environment: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interpreter.jupyter", "-f", str(file), "--template", "base", *more),
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


async def connect(file: Path) -> Any:
    """A client as early as can be: what it asks is answered once the kernel is there."""
    client: Any = AsyncKernelClient(connection_file=str(file))
    client.load_connection_file()
    client.start_channels(hb=False)
    client.hb_channel.is_beating = lambda: True
    await client.wait_for_ready(timeout=SECONDS)
    return client


async def status_of(launcher: Process) -> tuple[int, str]:
    assert launcher.stderr is not None
    async with asyncio.timeout(SECONDS):
        said = await launcher.stderr.read()
        return await launcher.wait(), said.decode()


@pytest.fixture
async def launched(kernelspecs: Path, tmp_path: Path) -> AsyncGenerator[tuple[Process, Any]]:
    file = write(tmp_path / "connection.json")
    launcher = await launch(file)
    client = await connect(file)
    yield launcher, client
    client.stop_channels()
    if launcher.returncode is None:
        launcher.kill()
    await launcher.communicate()


@pytest.mark.parametrize("key", ["", "a short one", secrets.token_hex(32)], ids=["none", "short", "long"])
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_it_listens_and_signs_as_the_file_says(
    kernelspecs: Path, tmp_path: Path, transport: str, key: str
) -> None:
    more = {"ip": str(tmp_path / "s"), **{f"{name}_port": n for n, name in enumerate(CHANNELS, 10)}}
    file = write(tmp_path / "connection.json", transport=transport, key=key, **(more if transport == "ipc" else {}))
    launcher = await launch(file)
    client = await connect(file)
    assert await run(client, "1 + 1") == "2"
    client.stop_channels()
    launcher.send_signal(signal.SIGTERM)
    assert await status_of(launcher) == (128 + signal.SIGTERM, "")
    assert list(tmp_path.iterdir()) == [file]


async def test_sigint_interrupts_the_code(launched: tuple[Process, Any]) -> None:
    launcher, client = launched
    request = client.execute("print('go', flush=True)\nwhile True: pass")
    await wait_for(client, request, "stream")
    launcher.send_signal(signal.SIGINT)
    assert (await wait_for(client, request, "error"))["content"]["ename"] == "KeyboardInterrupt"
    assert (await wait_for(client, request, "status"))["content"]["execution_state"] == "idle"
    assert await run(client, "1 + 1") == "2"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_a_signal_ends_it_with_its_machine(launched: tuple[Process, Any], number: signal.Signals) -> None:
    launcher, _ = launched
    (machine,) = machines_of(launcher.pid)
    descriptor = os.pidfd_open(machine)
    launcher.send_signal(number)
    status, said = await status_of(launcher)
    assert (status, said) == (-number if number == signal.SIGKILL else 128 + number, "")
    await ended(descriptor)


async def test_a_signal_before_the_kernel_is_there_ends_it(kernelspecs: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "connection.json")
    launcher = await launch(file)
    while not machines_of(launcher.pid):
        assert launcher.returncode is None
        await asyncio.sleep(0)
    launcher.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGTERM)
    assert await status_of(launcher) == (128 + signal.SIGTERM, "")


async def test_shutdown_request_ends_it_well(launched: tuple[Process, Any]) -> None:
    launcher, client = launched
    await client.shutdown(reply=True, timeout=SECONDS)
    assert await status_of(launcher) == (0, "")


@pytest.mark.parametrize(
    ("code", "expected"), [("import os; os._exit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 128 + 15)]
)
async def test_a_kernel_that_dies_ends_it_with_its_status(
    launched: tuple[Process, Any], code: str, expected: int
) -> None:
    launcher, client = launched
    client.execute(code)
    assert (await status_of(launcher))[0] == expected


async def test_a_machine_that_is_killed_ends_it_with_a_word(launched: tuple[Process, Any]) -> None:
    launcher, _ = launched
    (machine,) = machines_of(launcher.pid)
    os.kill(machine, signal.SIGKILL)
    status, said = await status_of(launcher)
    assert status == 128 + 9
    assert "machine is gone" in said


_CLIENT = """
import subprocess, sys
launcher = subprocess.Popen([sys.executable, "-m", "interpreter.jupyter", "-f", sys.argv[1], "--template", "base"])
print(launcher.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("told", [True, False])
async def test_it_ends_with_the_client_that_started_it(kernelspecs: Path, tmp_path: Path, told: bool) -> None:
    file = write(tmp_path / "connection.json")
    code = "import os; os.environ['JPY_PARENT_PID'] = str(os.getpid())" + _CLIENT if told else _CLIENT
    environment = {name: value for name, value in os.environ.items() if name != "JPY_PARENT_PID"}
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(file)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert parent.stdout is not None
    launcher = int(await parent.stdout.readline())
    descriptor = os.pidfd_open(launcher)
    client = await connect(file)
    (machine,) = machines_of(launcher)
    machine_descriptor = os.pidfd_open(machine)
    parent.kill()
    await parent.communicate()
    await ended(descriptor)
    await ended(machine_descriptor)
    client.stop_channels()


async def test_it_ends_at_once_when_its_client_is_gone_already(kernelspecs: Path, tmp_path: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    launcher = await launch(write(tmp_path / "connection.json"), JPY_PARENT_PID=str(gone.pid))
    assert await status_of(launcher) == (128 + signal.SIGHUP, "")


async def test_only_what_is_named_reaches_the_environment(kernelspecs: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "connection.json")
    launcher = await launch(file, "--env", "WANTED", WANTED="yes", SECRET="no", KERNEL_USERNAME="ada")
    client = await connect(file)
    names = "['WANTED', 'SECRET', 'KERNEL_USERNAME', 'INTERPRETER_HOME']"
    assert await run(client, f"import os; [os.environ.get(n) for n in {names}]") == "['yes', None, 'ada', None]"
    client.stop_channels()
    launcher.terminate()
    await launcher.communicate()


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"transport": "udp"}, "transport"),
        ({"shell_port": 0}, "shell_port"),
        ({"hb_port": 70_000}, "hb_port"),
        ({"iopub_port": "five"}, "iopub_port"),
        ({"signature_scheme": "hmac-md5"}, "signature_scheme"),
        ({"key": "schlüssel"}, "key"),
        ({"ip": None}, "ip"),
        ({"ip": "192.0.2.1"}, "cannot be listened on"),
        ({"transport": "ipc", "ip": "/nowhere/at/all"}, "cannot be listened on"),
        ({"transport": "ipc", "ip": "/tmp/" + "x" * 200}, "cannot be listened on"),
    ],
)
async def test_a_file_that_cannot_be_used_is_told(
    kernelspecs: Path, tmp_path: Path, about: dict[str, Any], said: str
) -> None:
    status, told = await status_of(await launch(write(tmp_path / "connection.json", **about)))
    assert status == 3
    assert said in told
    assert told.count("\n") == 1


async def test_a_file_that_is_not_there_or_is_none_is_told(kernelspecs: Path, tmp_path: Path) -> None:
    status, told = await status_of(await launch(tmp_path / "missing.json"))
    assert (status, told.count("\n")) == (3, 1)
    (tmp_path / "text.json").write_text("no JSON")
    status, told = await status_of(await launch(tmp_path / "text.json"))
    assert (status, told.count("\n")) == (3, 1)


async def test_a_port_that_is_taken_is_told(kernelspecs: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, told = await status_of(await launch(write(tmp_path / "connection.json", control_port=port)))
    assert status == 3
    assert f"127.0.0.1:{port} cannot be listened on" in told


async def test_a_template_that_is_not_built_is_told(kernelspecs: Path, tmp_path: Path) -> None:
    status, told = await status_of(await launch(write(tmp_path / "connection.json"), "--template", "nothing"))
    assert status == 3
    assert "interpreter template build nothing" in told


@pytest.mark.parametrize("killed", ["kernel", "machine"])
async def test_a_manager_starts_it_again_at_the_same_addresses(
    kernelspecs: Path, own_machines: Callable[[], list[int]], killed: str
) -> None:
    manager = ToldManager(kernel_name=LAUNCHED)
    await manager.start_kernel()
    manager.launched.clear()
    before = manager.get_connection_info()
    client = await connected(manager)
    if killed == "kernel":
        client.execute("import os; os._exit(1)")
    else:
        (machine,) = own_machines()
        os.kill(machine, signal.SIGKILL)
    async with asyncio.timeout(SECONDS):
        await manager.launched.wait()
    await client.wait_for_ready(timeout=SECONDS)
    assert await run(client, "1 + 1") == "2"
    client.stop_channels()
    await manager.shutdown_kernel()
    # A kernel that dies in its first seconds may be given other ports, of which the file then tells.
    assert {**manager.get_connection_info(), **ports(before)} == before


def ports(about: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in about.items() if name.endswith("_port")}


async def ended(descriptor: int) -> None:
    """Wait until a process has ended; closes the descriptor."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, gone.set)
    async with asyncio.timeout(SECONDS):
        await gone.wait()
    loop.remove_reader(descriptor)
    os.close(descriptor)
