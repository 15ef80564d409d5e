"""A time limit holds in a task that is cancelled, in each Python that the package runs on."""

import asyncio

import pytest

from interpreter.deadline import deadline


async def test_what_takes_too_long_is_left() -> None:
    with pytest.raises(TimeoutError):
        async with deadline(0.01):
            await asyncio.Event().wait()


@pytest.mark.parametrize("seconds", [None, 60.0])
async def test_what_ends_in_time_passes(seconds: float | None) -> None:
    async with deadline(seconds):
        await asyncio.sleep(0)


async def test_a_cancelled_task_cleans_up_within_its_limit_and_goes_on() -> None:
    steps: list[str] = []
    begun = asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            try:
                async with deadline(0.01):
                    await asyncio.Event().wait()
            except TimeoutError:
                steps.append("too long")
            steps.append("the rest")

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["too long", "the rest"]


async def test_a_cancellation_within_the_limit_is_none_of_its_business() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with deadline(60):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_its_time_can_be_put_off() -> None:
    async with deadline(60) as limit:
        limit.reschedule(asyncio.get_running_loop().time() + 0.01)
        with pytest.raises(TimeoutError):
            async with deadline(0.001):
                await asyncio.Event().wait()
        limit.reschedule(None)
        assert not limit.expired()
