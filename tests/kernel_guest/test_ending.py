"""A kernel that is ended ends as a program does: what its code left open is written, and atexit runs."""

import asyncio
import contextlib

import pytest
from guest_on_host import Guest, Kernel

from interpreter.errors import KernelDied

HOME = "import os, time\nos.chdir(os.path.expanduser('~'))\n"
OPEN = HOME + "left = open('left.csv', 'w')\nleft.write('1,2')\n"


@pytest.fixture(autouse=True)
def clean(guest: Guest) -> None:
    for path in guest.home.iterdir():
        if path.is_file():
            path.unlink()


async def begun(kernel: Kernel, code: str) -> asyncio.Task[object]:
    """Run code until it has printed something; it goes on."""
    running = asyncio.create_task(kernel.execute(code).result())
    while not (kernel.guest.home / "begun").exists():  # noqa: ASYNC110  (a file of another process has no event)
        await asyncio.sleep(0.01)
    return running


async def given_up(running: asyncio.Task[object]) -> None:
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError, KernelDied):
        await running


async def test_a_restart_writes_what_files_hold_that_were_left_open(guest: Guest, kernel: Kernel) -> None:
    await kernel.printed(OPEN)
    await kernel.restart()
    assert (guest.home / "left.csv").read_text() == "1,2"


async def test_a_context_that_is_closed_writes_what_files_hold_that_were_left_open(guest: Guest) -> None:
    await guest.call("open_context", context="second")
    async with guest.kernel("second") as kernel:
        await kernel.printed(OPEN)
    await guest.call("close_context", context="second")
    assert (guest.home / "left.csv").read_text() == "1,2"


async def test_what_was_registered_with_atexit_runs(guest: Guest, kernel: Kernel) -> None:
    await kernel.printed(HOME + "import atexit, pathlib\natexit.register(pathlib.Path('told').write_text, 'ended')")
    await kernel.restart()
    assert (guest.home / "told").read_text() == "ended"


async def test_objects_in_variables_are_finalized(guest: Guest, kernel: Kernel) -> None:
    """A zip archive gets its directory only when it is closed."""
    await kernel.printed(HOME + "import zipfile\nz = zipfile.ZipFile('left.zip', 'w')\nz.writestr('name', 'text')")
    await kernel.restart()
    assert b"PK\x05\x06" in (guest.home / "left.zip").read_bytes()


async def test_files_that_a_cycle_or_a_module_holds_are_written(guest: Guest, kernel: Kernel) -> None:
    code = "class Holder: pass\nholder = Holder()\nholder.itself, holder.file = holder, open('cycle', 'w')\n"
    code += "holder.file.write('in a cycle')\n"
    code += "import json\njson.left_open = open('module', 'w')\njson.left_open.write('in a module')"
    await kernel.printed(HOME + code)
    await kernel.restart()
    assert [(guest.home / name).read_text() for name in ("cycle", "module")] == ["in a cycle", "in a module"]


async def test_a_thread_that_is_no_daemon_is_waited_for(guest: Guest, kernel: Kernel) -> None:
    code = "import threading\ndef work():\n    time.sleep(0.5)\n    open('told', 'w').write('done')\n"
    await kernel.printed(HOME + code + "threading.Thread(target=work).start()")
    await kernel.restart()
    assert (guest.home / "told").read_text() == "done"


@pytest.mark.parametrize("wait", ["time.sleep(600)", "import asyncio; await asyncio.sleep(600)"])
async def test_a_busy_kernel_is_interrupted_and_closes_what_is_open(guest: Guest, kernel: Kernel, wait: str) -> None:
    code = "open('begun', 'w')\ntry:\n    " + wait + "\nfinally:\n    left.write(',3')"
    running = await begun(kernel, OPEN + code)
    await kernel.restart()
    assert (guest.home / "left.csv").read_text() == "1,2,3"
    await given_up(running)


async def test_a_kernel_that_does_not_end_when_asked_is_killed(guest: Guest, kernel: Kernel) -> None:
    code = "while True:\n    try:\n        open('begun', 'w')\n        time.sleep(600)\n    except KeyboardInterrupt:\n"
    running = await begun(kernel, HOME + code + "        pass")
    await kernel.restart()
    assert await kernel.printed("print(1)") == "1\n"
    await given_up(running)


async def test_a_kernel_that_a_client_shuts_down_closes_what_is_open(guest: Guest) -> None:
    async with guest.kernel() as kernel:
        pid = int(await kernel.printed(f"{OPEN}print(os.getpid())"))
        request = kernel.connection.codec.request("shutdown_request", {"restart": False})
        await kernel.connection.send("control", request)
        while (await guest.event("kernel_exited"))["pid"] != pid:
            continue
        assert (guest.home / "left.csv").read_text() == "1,2"
        await kernel.restart()
