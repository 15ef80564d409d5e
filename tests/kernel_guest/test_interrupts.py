"""Whatever a cell does, an interrupt ends it, and the kernel keeps its variables."""

import asyncio

import pytest
from guest_on_host import SECONDS, Kernel

from interpreter.errors import ExecutionTimeout
from interpreter.kernel.execution import Execution, ExecutionOptions

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


# Calls that follow each other without Python looking at signals in between: what is a matter of a microsecond, else.
IN_A_ROW = """
import asyncio, ctypes, functools, hashlib, operator, signal, time
def in_a_row(*calls):
    return list(map(operator.call, calls))
raised = functools.partial(ctypes.CDLL(None)["raise"], signal.SIGINT)
"""
LATE = f"""{IN_A_ROW}
selector = asyncio.get_running_loop()._selector
class Late:
    def __init__(self, poll):
        self.real = poll
    def poll(self, seconds, *arguments):
        if 0 <= seconds < 1:
            return self.real.poll(seconds, *arguments)
        selector._selector = self.real
        return in_a_row(raised, functools.partial(self.real.poll, seconds, *arguments))[1]
    def __getattr__(self, name):
        return getattr(self.real, name)
selector._selector = Late(selector._selector)
"""


async def test_an_interrupt_right_before_the_loop_waits_is_not_lost(kernel: Kernel) -> None:
    # As the loop's own code, not the user's.
    result = await kernel.run(f"exec({LATE!r}, {{}})\nimport asyncio\nawait asyncio.sleep(600)")
    assert result.error is not None
    assert result.error.ename == "CancelledError"


async def test_an_interrupt_right_before_code_waits_is_not_lost(kernel: Kernel) -> None:
    works = "functools.partial(hashlib.pbkdf2_hmac, 'sha256', b'', b'', 200_000)"
    code = f"{IN_A_ROW}print('runs', flush=True)\nin_a_row({works}, functools.partial(time.sleep, 600))"
    execution = kernel.execute(code)
    async with asyncio.timeout(SECONDS):
        async for output in execution:
            if output.type == "stream":
                await kernel.interrupt()
        result = await execution.result()
    assert result.error is not None
    assert result.error.ename == "KeyboardInterrupt"


HOOK = """
import signal
def hook(*_):
    ip.events.unregister({event!r}, hook)
    signal.raise_signal(signal.SIGINT)
ip = get_ipython()
ip.events.register({event!r}, hook)
"""


@pytest.mark.parametrize(
    ("event", "code", "status"),
    [
        ("pre_run_cell", "import asyncio\nawait asyncio.sleep(600)", "error"),
        ("pre_run_cell", "while True:\n    if not 1: await never", "error"),
        ("post_execute", "import asyncio\nawait asyncio.sleep(0)", "ok"),
    ],
    ids=["before a cell that waits", "before a cell that never waits", "after a cell"],
)
async def test_an_interrupt_while_the_cell_is_prepared_or_ended_loses_no_reply(
    kernel: Kernel, event: str, code: str, status: str
) -> None:
    await kernel.run(f"kept = 1\n{HOOK.format(event=event)}" if event == "pre_run_cell" else "kept = 1")
    if event == "post_execute":
        code = f"{HOOK.format(event=event)}\n{code}"
    result = await kernel.run(code)
    assert result.status == status
    assert result.execution_count is not None
    assert await kernel.printed("print(kept)") == "1\n"


AT_WORK = """
import signal
owner = {owner}
real = owner.{name}
left = [None] * {skipped}
def interrupted(*arguments, **options):
    if left:
        left.pop()
        return real(*arguments, **options)
    owner.{name} = real
    signal.raise_signal(signal.SIGINT)
    return real(*arguments, **options)
owner.{name} = interrupted
"""


@pytest.mark.parametrize(
    ("owner", "name", "skipped", "status", "ran"),
    [
        ("get_ipython()", "transform_cell", 0, "error", False),
        # Of the cell that arms it they are called after its code.
        ("get_ipython().payload_manager", "read_payload", 1, "error", True),
        ("get_ipython().kernel", "finish_metadata", 1, "ok", True),
    ],
    ids=["before the code", "after the code", "when the reply is made"],
)
async def test_an_interrupt_of_the_work_on_a_cell_leaves_it_its_reply(
    kernel: Kernel, owner: str, name: str, skipped: int, status: str, *, ran: bool
) -> None:
    at_work = AT_WORK.format(owner=owner, name=name, skipped=skipped)
    await kernel.run(f"ran = False\nexec({at_work!r}, {{'get_ipython': get_ipython}})")
    result = await kernel.run("ran = True")
    assert result.status == status
    assert result.execution_count is not None
    assert await kernel.printed("print(ran)") == f"{ran}\n"


def timed(kernel: Kernel, code: str) -> Execution:
    """Code that is out of time as soon as it runs."""
    options = ExecutionOptions(timeout=0.2, interrupt_grace=1.0)
    return Execution(kernel.connection, kernel, code, options)


LONG_CALL = "import hashlib, time\nsince = time.perf_counter()\nhashlib.pbkdf2_hmac('sha256', b'', b'', 100_000)\n"
LONG_CALL += "one = time.perf_counter() - since\n"


@pytest.mark.parametrize(
    "code",
    [
        "hashlib.pbkdf2_hmac('sha256', b'', b'', int(100_000 * 6 / one))",
        "sum(range(int(3e7 * 6 / two)))",
    ],
    ids=["a call that lets others run", "a call that holds Python's lock"],
)
async def test_a_call_that_an_interrupt_has_to_wait_for_does_not_cost_the_variables(kernel: Kernel, code: str) -> None:
    await kernel.run(f"{LONG_CALL}since = time.perf_counter()\nsum(range(int(3e7)))\ntwo = time.perf_counter() - since")
    with pytest.raises(ExecutionTimeout) as ended:
        await timed(kernel, code)
    assert not ended.value.kernel_restarted
    assert float(await kernel.printed("print(one)")) > 0


SLOW_TRACEBACK = """
import hashlib
shell = get_ipython()
real = shell.InteractiveTB.structured_traceback
def slow(*arguments, **options):
    for _ in range(30):
        hashlib.pbkdf2_hmac('sha256', b'', b'', int(2e4 / one))
    shell.InteractiveTB.structured_traceback = real
    return real(*arguments, **options)
shell.InteractiveTB.structured_traceback = slow
"""


async def test_a_long_traceback_does_not_cost_the_variables(kernel: Kernel) -> None:
    # What writes it is no code of the user's.
    await kernel.run(f"{LONG_CALL}exec({SLOW_TRACEBACK!r}, {{'one': one, 'get_ipython': get_ipython}})")
    with pytest.raises(ExecutionTimeout) as ended:
        await timed(kernel, "while True: int()")
    assert not ended.value.kernel_restarted
    assert float(await kernel.printed("print(one)")) > 0


async def test_code_that_goes_on_after_its_interrupt_has_its_grace_and_no_more(kernel: Kernel) -> None:
    with pytest.raises(ExecutionTimeout, match="variables are gone") as ended:
        await timed(kernel, "while True:\n    try:\n        while True: int()\n    except KeyboardInterrupt: pass")
    assert ended.value.kernel_restarted
