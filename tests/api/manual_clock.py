"""A clock for tests."""

import asyncio

_PATIENCE = 60.0


class ManualClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now
        self._step = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._began = asyncio.Event()

    def now(self) -> float:
        return self._now + self._step

    def elapsed(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + seconds, future))
        self._began.set()
        await future

    def advance(self, seconds: float) -> None:
        """Let that many seconds pass at once."""
        self._now += seconds
        due = [sleeper for sleeper in self._sleepers if sleeper[0] <= self._now]
        self._sleepers = [sleeper for sleeper in self._sleepers if sleeper[0] > self._now]
        for _, future in due:
            if not future.done():
                future.set_result(None)

    async def live_through(self, seconds: float) -> None:
        """Let that many seconds pass and whoever slept have its turn: returns when as many sleep again.

        After it what did not happen will not happen of itself, as long as nobody who woke is to end with that.
        """
        sleepers = self._asleep()
        self.advance(seconds)
        async with asyncio.timeout(_PATIENCE):
            while self._asleep() < sleepers:
                await self._began.wait()

    def _asleep(self) -> int:
        self._began.clear()
        return sum(not future.done() for _, future in self._sleepers)

    def set_wall(self, seconds: float) -> None:
        """Set the wall clock forwards or back, while no time passes."""
        self._step += seconds
