"""Templates are loaded once per build, whatever they are asked for by, and a load that failed is tried anew."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from interpreter import Accelerator, Engine, Settings
from interpreter.engine import engine as module
from interpreter.templates.definition import Definition
from interpreter.templates.loaded import LoadedTemplate
from interpreter.templates.manifest import MANIFEST, Manifest, write_json
from interpreter.vm.accelerator import AcceleratorAnswer
from kernel_guest.frames import AGENT_VERSION

CONTENT = "ab12" * 16


class Loads:
    """Loads that count, and that fail as often as they are told to; no memory behind them."""

    def __init__(self) -> None:
        self.began = 0
        self.first = asyncio.Event()
        self.open = 0
        self.failures: list[Exception] = []

    @asynccontextmanager
    async def load(self, settings: Settings, name: str, *_: object) -> AsyncGenerator[LoadedTemplate]:
        self.began += 1
        self.first.set()
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        self.open += 1
        manifest = Manifest.model_validate_json((settings.templates_home / "built" / name / MANIFEST).read_bytes())
        yield LoadedTemplate(manifest, None, 1, 2, 3, 4)  # type: ignore[arg-type]
        self.open -= 1


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    loads = Loads()
    monkeypatch.setattr(module, "load_template", loads.load)

    async def emulated(settings: Settings) -> AcceleratorAnswer:
        return AcceleratorAnswer(Accelerator.TCG, "a test")

    monkeypatch.setattr(module, "choose_accelerator", emulated)
    return loads


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path)
    build(settings)
    return settings


def build(settings: Settings, content: str = CONTENT, name: str = "small") -> None:
    folder = settings.templates_home / "built" / content
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name=name,
        agent_version=AGENT_VERSION,
        content_hash=content,
        definition=Definition(),
        kernel_version="6",
        apt_packages={},
        python_packages={},
        build_seconds={},
        files={},
    )
    write_json(manifest, folder / MANIFEST)
    names = settings.templates_home / "names"
    names.mkdir(exist_ok=True)
    (names / name).write_text(content)


async def test_every_prefix_of_a_hash_and_every_name_is_one_load(loads: Loads, settings: Settings) -> None:
    async with Engine(settings) as engine:
        asked = ["small", *(CONTENT[:digits] for digits in range(12, 65))]
        loaded = await asyncio.gather(*(engine.load(name) for name in asked))
        assert len({id(one) for one in loaded}) == 1
        assert loads.began == 1
    assert loads.open == 0


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), MemoryError(), ValueError()],
    ids=lambda e: type(e).__name__,
)
async def test_a_load_that_failed_is_tried_anew_whatever_it_failed_of(
    loads: Loads, settings: Settings, error: Exception
) -> None:
    loads.failures = [error]
    async with Engine(settings) as engine:
        with pytest.raises(type(error)):
            await engine.load("small")
        await engine.load("small")
        assert (loads.began, loads.open) == (2, 1)


async def test_one_who_gives_up_waiting_takes_the_load_from_nobody(loads: Loads, settings: Settings) -> None:
    async with Engine(settings) as engine:
        impatient = asyncio.create_task(engine.load("small"))
        patient = asyncio.create_task(engine.load("small"))
        await loads.first.wait()
        impatient.cancel()
        await patient
        assert loads.began == 1


async def test_a_build_that_was_replaced_is_let_go_when_the_new_one_is_loaded(loads: Loads, settings: Settings) -> None:
    async with Engine(settings) as engine:
        await engine.load("small")
        other = "cd34" * 16
        build(settings, other)
        shutil.rmtree(settings.templates_home / "built" / CONTENT)
        assert (await engine.load("small")).manifest.content_hash == other
        assert loads.open == 1


async def test_the_same_content_built_anew_is_loaded_anew(loads: Loads, settings: Settings) -> None:
    async with Engine(settings) as engine:
        await engine.load("small")
        build(settings)
        await engine.load("small")
        assert (loads.began, loads.open) == (2, 1)
