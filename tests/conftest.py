"""What tests share: templates built once a run, one engine that restores sessions from the smaller one.

Tests marked ``machine`` use real machines, or the guest's agent with its kernels on this host. Their state lies under
``INTERPRETER_HOME`` when that is set, else in a folder that is kept between runs in the user's cache; a template is
built unless the very same is there.
"""

import contextlib
import os
import re
import shutil
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import settings as hypothesis_settings

from interpreter import Accelerator, Engine, Session, Settings, build_template

TEMPLATE = "base"
DATA_TEMPLATE = "python-data"

# How long an example takes tells more of what else the machine does than of the code.
hypothesis_settings.register_profile("whole", deadline=None)
hypothesis_settings.register_profile("fast", deadline=None, max_examples=20)

# A shell that starts the tests in the background has them ignore Ctrl-C, and all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def settings() -> Settings:
    home = Path(os.environ.get("INTERPRETER_HOME") or Path.home() / ".cache" / "interpreter-tests")
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        # Tests look at what their machines leave in the state folder: one each, with the templates of all.
        (home / "templates").mkdir(parents=True, exist_ok=True)
        own = home / "workers" / worker
        own.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (own / "templates").symlink_to(home / "templates")
        if (kept := home / "accelerator.json").exists():
            shutil.copy(kept, own)
        home = own
    return Settings(home=home)


@pytest.fixture(scope="session")
async def engine(settings: Settings) -> AsyncGenerator[Engine]:
    async with Engine(settings) as engine:
        await build_template(settings, TEMPLATE, Accelerator(engine.accelerator.accelerator), print)
        await engine.load(TEMPLATE)
        yield engine


@pytest.fixture(scope="session")
async def data_template(engine: Engine, settings: Settings) -> str:
    """The template with pandas, matplotlib and ipywidgets, for tests that use them; the engine has not loaded it."""
    await build_template(settings, DATA_TEMPLATE, Accelerator(engine.accelerator.accelerator), print)
    return DATA_TEMPLATE


@pytest.fixture
async def session(engine: Engine) -> AsyncGenerator[Session]:
    async with engine.session(template=TEMPLATE) as session:
        yield session


def pytest_configure(config: pytest.Config) -> None:
    hypothesis_settings.load_profile("fast" if config.option.markexpr == "not machine" else "whole")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "engine" in fixtures:
            # The first machine test may have to build a template, which takes minutes; each has a bound all the same.
            item.add_marker(pytest.mark.timeout(900))
        if "engine" in fixtures or "guest" in fixtures:
            item.add_marker(pytest.mark.machine)


_ALL_NEED_MACHINES = re.compile(r"^pytestmark = .*pytest\.mark\.machine\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The fast tests do not even import what they leave out, which is most of their time."""
    if config.option.markexpr != "not machine":
        return None
    files = sorted(collection_path.glob("test_*.py")) if collection_path.is_dir() else [collection_path]
    files = [file for file in files if file.suffix == ".py"]
    # A folder is left out with its conftest.
    needing = [file for file in files if _ALL_NEED_MACHINES.search(file.read_text(encoding="utf-8"))]
    return True if files and needing == files else None
