"""Work in the background, after an error that nobody expected: down, told by readyz, and then well again."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import SECONDS, own_home, serve

from interpreter import Engine, Settings
from interpreter.accounting.ledger import Ledger
from interpreter.sessions.guard import Guard
from interpreter.sessions.pool import Pool
from interpreter.sessions.unwritten import Unwritten
from interpreter.store.retention import Retention

WORKS: dict[str, tuple[Any, str]] = {
    "ledger": (Ledger, "sample"),
    "guard": (Guard, "look"),
    "pool of base": (Pool, "_add"),
    "records of ended sessions": (Unwritten, "run"),
    "retention": (Retention, "sweep"),
}


class Failing:
    """Work that fails until it was seen to."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original
        self.seen = False

    def work(self) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not self.seen:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self._original(*args)

        return call


@pytest.mark.parametrize("name", WORKS)
async def test_work_that_fails_of_what_nobody_expected_is_told_by_readyz_until_it_goes_on(
    engine: Engine, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, attribute = WORKS[name]
    failing = Failing(getattr(owner, attribute))
    monkeypatch.setattr(owner, attribute, failing.work())
    own = Settings(home=own_home(settings, tmp_path / "home"), default_template="base", pool={"base": 1})
    async with serve(own) as api:
        async with asyncio.timeout(SECONDS):
            while (answer := await api.client.get("/readyz")).status_code == 200:
                continue
        failing.seen = True
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "not_ready")
        assert f"{name}: OSError: [Errno 24] Too many open files" in error["message"]
        # All else goes on meanwhile.
        assert (await api.client.get("/healthz")).status_code == 200
        async with asyncio.timeout(SECONDS):
            while (answer := await api.client.get("/readyz")).status_code != 200:
                continue
            while api.service.sessions.pool.ready["base"] < 1:
                await api.client.get("/healthz")
