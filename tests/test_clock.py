"""The service's clock: what has passed goes on evenly while the time of day is set, forwards or back."""

import time

import pytest

from interpreter.clock import SystemClock


class Host:
    """The host's two clocks, as the tests set them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.booted = 1_000_000.0, 500.0
        monkeypatch.setattr(time, "time", lambda: self.wall)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: {time.CLOCK_BOOTTIME: self.booted}[clock])


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_step_of_the_time_of_day_is_told_and_nothing_has_passed(host: Host, step: float) -> None:
    clock = SystemClock()
    host.wall += step
    assert (clock.now(), clock.elapsed()) == (1_000_000.0 + step, 500.0)


def test_small_steps_do_not_make_it_uneven(host: Host) -> None:
    clock = SystemClock()
    host.wall += 10 - 0.4
    host.booted += 10
    assert (clock.now(), clock.elapsed()) == (1_000_010.0, 510.0)


def test_time_that_the_host_slept_has_passed(host: Host) -> None:
    clock = SystemClock()
    host.wall += 7200
    host.booted += 7200
    assert (clock.now(), clock.elapsed()) == (1_007_200.0, 7700.0)


async def test_a_sleep_ends_when_the_host_slept_over_its_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        host.booted += 4000

    monkeypatch.setattr("interpreter.clock.asyncio.sleep", sleep)
    await SystemClock().sleep(3600)
    # In one piece it would have slept for an hour more.
    assert len(slept) == 1
    assert slept[0] < 60
