"""The loop under the client without asyncio: results, errors, Ctrl-C, generators that are left, and its end."""

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import CancelledError

import pytest

from interpreter.client.loop import BackgroundLoop


@pytest.fixture
def loop() -> Generator[BackgroundLoop]:
    loop = BackgroundLoop()
    yield loop
    loop.close()


def test_results_and_errors_come_back(loop: BackgroundLoop) -> None:
    async def well() -> int:
        await asyncio.sleep(0)
        return 1

    async def wrong() -> None:
        raise LookupError("here")

    assert loop.run(well()) == 1
    with pytest.raises(LookupError, match="here"):
        loop.run(wrong())


def test_ctrl_c_cancels_and_waits_until_all_is_closed(loop: BackgroundLoop) -> None:
    main, closed = threading.get_ident(), list[str]()

    async def forever() -> None:
        try:
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            closed.append("yes")

    with pytest.raises(KeyboardInterrupt):
        loop.run(forever())
    assert closed == ["yes"]


def test_ctrl_c_in_a_generator_closes_it(loop: BackgroundLoop) -> None:
    main, closed = threading.get_ident(), list[str]()

    async def items() -> AsyncGenerator[int]:
        try:
            yield 1
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            closed.append("yes")

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(loop.iterate(items()))
    assert closed == ["yes"]


def test_a_generator_that_is_left_is_closed(loop: BackgroundLoop) -> None:
    closed: list[str] = []

    async def items() -> AsyncGenerator[int]:
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0)
            closed.append("yes")

    for item in loop.iterate(items()):
        if item == 2:
            break
    assert closed == ["yes"]
    assert list(loop.iterate(items())) == list(range(10))


def test_its_own_thread_is_refused(loop: BackgroundLoop) -> None:
    async def inner() -> None: ...

    async def outer() -> None:
        loop.run(inner())

    with pytest.raises(RuntimeError, match="own callback"):
        loop.run(outer())


def test_many_threads_share_it(loop: BackgroundLoop) -> None:
    all_are_in, passed = asyncio.Barrier(50), list[int]()

    async def meet() -> int:
        # One after the other they would never be complete.
        async with asyncio.timeout(20):
            return await all_are_in.wait()

    threads = [threading.Thread(target=lambda: passed.append(loop.run(meet()))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(passed) == list(range(50))


def test_its_end(loop: BackgroundLoop) -> None:
    async def work() -> None: ...

    loop.close()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(work())


async def test_it_serves_where_a_loop_runs_already() -> None:
    async def work() -> int:
        return await asyncio.to_thread(lambda: 2)

    loop = BackgroundLoop()
    assert loop.run(work()) == 2
    loop.close()


def test_its_end_is_told_to_who_waits(loop: BackgroundLoop) -> None:
    begun, told = threading.Event(), list[type[BaseException]]()

    async def forever() -> None:
        begun.set()
        await asyncio.sleep(60)

    def wait() -> None:
        try:
            loop.run(forever())
        except BaseException as error:
            told.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait(5)
    loop.close()
    thread.join(5)
    assert told == [CancelledError]
