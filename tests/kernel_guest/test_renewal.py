"""Nothing is answered before the renewal; after it a kernel shares no key, no random state and no names with others."""

import asyncio
import random

import pytest
from guest_on_host import SECONDS, Guest

from interpreter.errors import GuestRefused
from interpreter.kernel.files import put_file
from interpreter.kernel.framing import open_service
from interpreter.kernel.message import Codec
from kernel_guest.frames import Kind

pytestmark = pytest.mark.machine

DRAW = """
import os, random, tempfile, uuid
print(random.random(), uuid.uuid1().node, uuid.uuid1(), os.path.basename(tempfile.mktemp()))
"""


@pytest.mark.parametrize("operation", ["ping", "clock", "interrupt", "restart", "power_off", "nonsense"])
async def test_every_call_but_renew_is_refused_before_the_renewal(unrenewed: Guest, operation: str) -> None:
    with pytest.raises(GuestRefused) as refusal:
        await unrenewed.call(operation)
    assert refusal.value.guest_code == "not_renewed"


@pytest.mark.parametrize(
    ("service", "arguments"),
    [
        ("kernel", {}),
        ("splice", {"channel": "shell"}),
        ("get", {"path": "x"}),
        ("put", {"path": "x", "size": 0, "mode": 0o644}),
        ("nonsense", {}),
    ],
)
async def test_every_stream_is_refused_before_the_renewal(
    unrenewed: Guest, service: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(GuestRefused) as refusal:
        async with open_service(unrenewed.connect, service, **arguments):
            pass
    assert refusal.value.guest_code == "not_renewed"
    assert not list(unrenewed.home.iterdir())


async def test_a_renewal_that_lacks_something_is_refused_and_opens_nothing(unrenewed: Guest) -> None:
    for missing in ("key", "session", "env", "entropy"):
        arguments = {**unrenewed.renewal.arguments()}
        del arguments[missing]
        with pytest.raises(GuestRefused, match=missing if missing != "entropy" else "lacks") as refusal:
            await unrenewed.call("renew", **arguments)
        assert refusal.value.guest_code == "bad_request"
    with pytest.raises(GuestRefused, match="renewed"):
        await unrenewed.call("ping")


async def test_the_first_cell_after_the_warm_up_has_number_one(fresh_guest: Guest) -> None:
    await fresh_guest.renew()
    async with fresh_guest.kernel() as kernel:
        result = await kernel.run("[name for name in globals() if name == 'warm'], In")
        assert result.execution_count == 1
        assert (await kernel.run("1")).execution_count == 2


async def test_messages_signed_with_the_old_key_are_not_answered(guest: Guest) -> None:
    old = Codec(guest.renewal.key, guest.renewal.session)
    renewal = await guest.renew()
    new = Codec(renewal.key, renewal.session)
    requests = {codec: codec.request("kernel_info_request", {}) for codec in (old, new)}
    answered: set[str] = set()
    async with asyncio.timeout(SECONDS), open_service(guest.connect, "kernel") as stream:
        for codec, request in requests.items():
            await stream.send(Kind.MESSAGE, {"channel": "shell", "parts": codec.serialise(request)})
        # One socket keeps the order: an answer to the first would come before the answer to the second.
        while requests[new].header.msg_id not in answered:
            frame = await stream.receive()
            assert frame is not None
            answered.add(new.parse(frame.body["parts"]).parent_id)
    assert requests[old].header.msg_id not in answered


async def test_a_restarted_kernel_has_the_renewed_key_and_environment(guest: Guest) -> None:
    await guest.renew(COLOUR="blue")
    async with guest.kernel() as kernel:
        await kernel.restart()
        assert await kernel.printed("import os\nprint(os.environ['COLOUR'])") == "blue\n"


async def test_the_environment_and_the_time_zone_are_set_in_the_running_kernel(guest: Guest) -> None:
    await guest.renew(COLOUR="grün", TZ="Asia/Kathmandu")
    async with guest.kernel() as kernel:
        printed = await kernel.printed("import os, time\nprint(os.environ['COLOUR'], time.strftime('%z'))")
    assert printed == "grün +0545\n"


async def test_a_renewal_reaches_a_kernel_that_is_busy(guest: Guest) -> None:
    await guest.renew()
    async with guest.kernel() as kernel, asyncio.timeout(SECONDS):
        code = "import os, time\nprint('busy', flush=True)\nwhile 'WHILE' not in os.environ: time.sleep(0.01)"
        async for _ in kernel.execute(code):
            break
        await guest.renew(WHILE="busy")
    # The code ends only because the renewal reached it, and this cell runs only when it has ended.
    async with guest.kernel() as kernel:
        assert await kernel.printed("print(os.environ['WHILE'])") == "busy\n"


async def test_two_kernels_of_one_zygote_share_no_random_state_and_no_names(guest: Guest) -> None:
    await guest.renew()
    async with guest.kernel() as kernel:
        first = await kernel.printed(DRAW)
        await kernel.restart()
        second = await kernel.printed(DRAW)
    assert len(first.split()) == 4
    assert not set(first.split()) & set(second.split()) - {first.split()[1]}


async def test_a_renewal_gives_the_running_kernel_new_random_state(guest: Guest) -> None:
    await guest.renew()
    async with guest.kernel() as kernel:
        await kernel.printed("import random\nrandom.seed(7)")
    await guest.renew()
    async with guest.kernel() as kernel:
        drawn = await kernel.printed("import random\nprint(random.random())")
    assert float(drawn) != random.Random(7).random()


async def test_files_pass_after_the_renewal(guest: Guest) -> None:
    async def pieces():
        yield b"content"

    await guest.renew()
    assert await put_file(guest.connect, "file", pieces(), size=7) == 7
    assert (guest.home / "file").read_bytes() == b"content"


async def test_a_guest_that_hears_nothing_more_ends_its_machine(fresh_guest: Guest) -> None:
    arguments = {**fresh_guest.renewal.arguments(), "orphaned_after": 3}
    await fresh_guest.call("renew", **arguments)
    for _ in range(3):
        # Each call is a sign of life.
        await fresh_guest.call("ping")
    await fresh_guest.end()


async def test_a_call_ends_the_machine(fresh_guest: Guest) -> None:
    await fresh_guest.renew()
    await fresh_guest.call("power_off")
    await fresh_guest.end()
