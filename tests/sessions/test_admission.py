"""Who may start a session: limits hold under any order of coming and going; the queue is fair and bounded."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter.errors import Draining, HostFull, TenantLimit
from interpreter.sessions.admission import Admission, Ticket
from interpreter.sessions.resources import Resource
from interpreter.settings import Settings
from interpreter.store.records import Reason

PLENTY = 1 << 40


def admission(resources: Sequence[Resource] = (), **limits: object) -> Admission:
    settings = Settings.model_validate({"queue_seconds": 0.05, "queue_size": 2, **limits})
    return Admission(settings, 4, resources, lambda: ["running"])


def resource(available: int, held: int = 0) -> Resource:
    """Of which 100 are to stay free and a session is expected to take 150."""
    return Resource("disk", lambda: available, lambda _: held, each=150, reserve=100, reason=Reason.OUT_OF_DISK)


async def admit(admission: Admission, tenant: str = "a", cpus: int = 1) -> Ticket:
    async with admission.ticket(tenant, cpus) as ticket:
        return ticket


async def test_a_tenant_at_its_limit_is_refused_at_once_and_others_are_not() -> None:
    gate = admission(max_sessions_per_tenant=1)
    ticket = await admit(gate)
    with pytest.raises(TenantLimit):
        await admit(gate)
    await admit(gate, "b")
    gate.give_back(ticket)
    await admit(gate)


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_sessions": 1}, "holds 1 at most"),
        ({"max_cpus": 1}, "vCPUs"),
    ],
)
async def test_a_full_host_is_told_after_waiting(limits: dict[str, int], said: str) -> None:
    gate = admission(**limits)
    await admit(gate)
    with pytest.raises(HostFull, match=said) as refusal:
        await admit(gate)
    assert refusal.value.retry_after > 0
    assert gate.waiting == 0


async def test_a_session_that_would_take_of_the_reserve_is_told_of_what_there_is_too_little() -> None:
    # What runs has taken 50 and is expected to take 100 more; then come the new one's 150 and the reserve of 100.
    await admit(admission([resource(PLENTY), resource(350, held=50)]))
    with pytest.raises(HostFull, match="the host's disk is taken"):
        await admit(admission([resource(PLENTY), resource(349, held=50)]))


async def test_sessions_that_are_starting_count_with_what_they_will_take() -> None:
    gate = admission([resource(399, held=150)], queue_seconds=0)
    async with gate.ticket("a", 1):
        with pytest.raises(HostFull, match="disk"):
            await admit(gate)


async def test_those_who_wait_come_in_order_and_no_more_than_the_queue_holds() -> None:
    gate = admission(max_sessions=1, queue_seconds=30)
    ticket = await admit(gate)
    order: list[int] = []

    async def wait(number: int) -> Ticket:
        got = await admit(gate)
        order.append(number)
        return got

    first = asyncio.create_task(wait(1))
    second = asyncio.create_task(wait(2))
    await asyncio.sleep(0)
    assert gate.waiting == 2
    with pytest.raises(HostFull):
        await admit(gate)
    gate.give_back(ticket)
    gate.give_back(await first)
    await second
    assert order == [1, 2]


async def test_who_gives_up_while_waiting_holds_nobody_up() -> None:
    gate = admission(max_sessions=1, queue_seconds=30)
    ticket = await admit(gate)
    first, second = asyncio.create_task(admit(gate)), asyncio.create_task(admit(gate))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    gate.give_back(ticket)
    await second
    assert gate.waiting == 0


async def test_draining_refuses_all_also_those_who_wait() -> None:
    gate = admission(max_sessions=1, queue_seconds=30)
    await admit(gate)
    waiting = [asyncio.create_task(admit(gate)) for _ in range(2)]
    await asyncio.sleep(0)
    gate.drain()
    for task in waiting:
        with pytest.raises(Draining):
            await task
    with pytest.raises(Draining):
        await admit(gate)


async def test_a_start_that_fails_gives_its_place_back() -> None:
    gate = admission(max_sessions=1)
    with pytest.raises(RuntimeError):
        async with gate.ticket("a", 1):
            raise RuntimeError("the restore failed")
    await admit(gate)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.booleans()), max_size=30))
def test_limits_hold_in_any_order(steps: list[tuple[str, int, bool]]) -> None:
    async def run() -> None:
        gate = admission(max_sessions=4, max_sessions_per_tenant=3, max_cpus=6, queue_seconds=0)
        held: list[Ticket] = []
        for tenant, cpus, leave in steps:
            if leave and held:
                gate.give_back(held.pop(0))
                continue
            try:
                held.append(await admit(gate, tenant, cpus))
            except (HostFull, TenantLimit):
                fits = sum(ticket.tenant == tenant for ticket in held) < 3
                room = len(held) < 4 and sum(ticket.cpus for ticket in held) + cpus <= 6
                assert not (fits and room)
            assert len(held) <= 4
            assert sum(ticket.cpus for ticket in held) <= 6

    asyncio.run(run())
