"""Whatever a cell does, an interrupt ends it, and the kernel keeps its variables."""

import asyncio

import pytest
from guest_on_host import SECONDS, Kernel

BUSY = "import asyncio\nasync def busy():\n    print('runs', flush=True)\n    while True: pass\n"
CELLS = {
    "a sleep that is awaited": (
        "import asyncio\nprint('runs', flush=True)\nawait asyncio.sleep(600)",
        "CancelledError",
    ),
    "tasks": ("import asyncio\nprint('runs', flush=True)\nawait asyncio.gather(asyncio.sleep(600))", "CancelledError"),
    "a thread": (
        "import asyncio, threading\nprint('runs', flush=True)\nawait asyncio.to_thread(threading.Event().wait, 5)",
        "CancelledError",
    ),
    "its own code after an await": (
        "import asyncio\nawait asyncio.sleep(0)\nprint('runs', flush=True)\nwhile True: pass",
        "KeyboardInterrupt",
    ),
    "code of two tasks": (f"{BUSY}await asyncio.gather(busy(), busy())", "CancelledError"),
    "no await": ("print('runs', flush=True)\nwhile True: pass", "KeyboardInterrupt"),
}


@pytest.mark.parametrize(("code", "error"), CELLS.values(), ids=CELLS)
async def test_it_ends_what_the_cell_does(kernel: Kernel, code: str, error: str) -> None:
    await kernel.run("kept = 1")
    execution = kernel.execute(code)
    async with asyncio.timeout(SECONDS):
        async for output in execution:
            if output.type == "stream" and "runs" in output.text:
                await kernel.interrupt()
        result = await execution.result()
    assert result.error is not None
    # Before it has come to its await it is still its own code that runs.
    assert result.error.ename in {error, "KeyboardInterrupt"}
    assert await kernel.printed("print(kept)") == "1\n"


async def test_the_cell_may_clean_up(kernel: Kernel) -> None:
    code = "import asyncio\ntry:\n    print('runs', flush=True)\n"
    code += "    await asyncio.sleep(600)\nfinally:\n    cleaned = True"
    execution = kernel.execute(code)
    async with asyncio.timeout(SECONDS):
        async for output in execution:
            if output.type == "stream":
                await kernel.interrupt()
    assert await kernel.printed("print(cleaned)") == "True\n"
