"""Templates after an upgrade: which are outdated, and what those say who are asked for a session of one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import structlog.testing
from paper_builds import manifest_of, publish, rewrite

from interpreter import Engine, Settings, SnapshotDamaged, TemplateOutdated
from interpreter.sessions.rebuilding import rebuild_outdated
from interpreter.settings import AcceleratorChoice
from interpreter.templates.overview import known_templates
from interpreter.templates.store import TemplateStore
from kernel_guest.frames import AGENT_VERSION


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state folder in which `mine` is built as it is defined; nothing in it can be run."""
    folder = tmp_path / "definitions" / "mine"
    folder.mkdir(parents=True)
    # No image can be built of this suite: whoever tries is told at once.
    (folder / "template.toml").write_text('suite = "nowhere"\n')
    (folder / "requirements.txt").touch()
    settings = Settings(home=tmp_path / "home", template_path=str(folder.parent), accelerator=AcceleratorChoice.TCG)
    publish(settings, "mine")
    return settings


def outdated(settings: Settings) -> bool:
    return next(known.outdated for known in known_templates(settings) if known.name == "mine")


async def load(settings: Settings) -> None:
    async with Engine(settings) as engine:
        await engine.load("mine")
    pytest.fail("it was loaded")


def test_what_would_be_built_the_same_is_not_outdated(settings: Settings) -> None:
    assert not outdated(settings)
    assert {known.name: known.built is not None for known in known_templates(settings)}["base"] is False


def test_a_definition_that_was_changed_makes_a_build_outdated(settings: Settings) -> None:
    (Path(settings.template_path) / "mine" / "requirements.txt").write_text("numpy\n")
    assert outdated(settings)


def test_without_a_definition_there_is_nothing_to_build(settings: Settings) -> None:
    (Path(settings.template_path) / "mine" / "template.toml").unlink()
    (known,) = (known for known in known_templates(settings) if known.name == "mine")
    assert (known.outdated, known.defined, known.built is not None) == (False, False, True)


@pytest.mark.parametrize("version", [None, 1, AGENT_VERSION + 1])
async def test_a_build_whose_agent_is_of_another_version_names_the_command_that_renews_it(
    settings: Settings, version: int | None
) -> None:
    # None: from before builds noted it.
    path = manifest_of(settings)
    about = json.loads(path.read_text())
    del about["agent_version"]
    path.write_text(json.dumps(about if version is None else {**about, "agent_version": version}))
    assert outdated(settings)
    with pytest.raises(TemplateOutdated, match="interpreter template build mine$") as raised:
        await load(settings)
    assert raised.value.code == "template_outdated"


async def test_a_build_of_another_form_is_outdated_not_damaged(settings: Settings) -> None:
    rewrite(settings, format=2, files="another way")
    assert outdated(settings)
    with pytest.raises(TemplateOutdated, match="interpreter template build mine$"):
        await load(settings)
    TemplateStore(settings.templates_home).remove("mine")
    assert not list(settings.templates_home.glob("built/*"))


async def test_a_manifest_of_another_build_is_damage(settings: Settings) -> None:
    rewrite(settings, content_hash="a" * 64)
    with pytest.raises(SnapshotDamaged, match=r"another build.*build mine --force"):
        await load(settings)


def test_the_list_tells_which_are_outdated_and_how_to_renew_them(settings: Settings) -> None:
    rewrite(settings, agent_version=1)
    own = {"INTERPRETER_HOME": str(settings.home), "INTERPRETER_TEMPLATE_PATH": settings.template_path}

    def listed(*options: str) -> str:
        command = [sys.executable, "-c", "from interpreter.cli import main; main()", "template", "list", *options]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **own})
        return run.stdout + run.stderr

    assert "(outdated)" in listed()
    assert "interpreter template build mine" in listed()
    rows = json.loads(listed("--json"))["templates"]
    assert {row["name"]: row["outdated"] for row in rows}["mine"] is True


async def test_one_that_cannot_be_built_anew_is_told_and_keeps_nobody_from_the_others(settings: Settings) -> None:
    definitions = Path(settings.template_path)
    shutil.copytree(definitions / "mine", definitions / "other")
    publish(settings, "other")
    for name in ("mine", "other"):
        (definitions / name / "requirements.txt").write_text("numpy\n")
    async with Engine(settings) as engine:
        with structlog.testing.capture_logs() as logs:
            await rebuild_outdated(engine)
    told = [(entry["template"], entry["error"]) for entry in logs if "error" in entry]
    assert [name for name, _ in told] == ["mine", "other"]
    assert all("no root file system can be built for suite 'nowhere'" in error for _, error in told)
