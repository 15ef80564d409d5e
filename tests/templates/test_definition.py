"""Definitions: the shipped ones are sound; every mistake in a template.toml is named with its file and key."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from interpreter import Settings, TemplateInvalid, TemplateNotFound
from interpreter.templates.definition import defined_names, parse_template, read_template


def write(folder: Path, text: str) -> Path:
    (folder / "template.toml").write_text(text, encoding="utf-8")
    (folder / "requirements.txt").touch()
    return folder


@pytest.mark.parametrize("name", ["base", "python-data"])
def test_shipped_templates_pin_every_requirement(name: str, tmp_path: Path) -> None:
    template = read_template(Settings(home=tmp_path), name)
    lines = [line for line in template.requirements.decode().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if "==" not in line] == []
    assert template.definition.scratch_gb == 10


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("memroy_mb = 512", "memroy_mb: unknown key; allowed are"),
        ("memory_mb = 1", "memory_mb"),
        ('cpus = "two"', "cpus"),
        ('apt = ["curl; rm -rf /"]', "apt.0"),
        ('suite = "../x"', "suite"),
        ('requirements = "../secret"', "requirements"),
        ('warmup = "missing.py"', "missing.py"),
        ("= 1", "not TOML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(TemplateInvalid) as error:
        parse_template("x", write(tmp_path, text))
    assert named in str(error.value)
    assert str(tmp_path) in str(error.value)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200))
def test_arbitrary_text_is_a_definition_or_invalid(tmp_path: Path, text: str) -> None:
    try:
        parse_template("x", write(tmp_path, text.encode("utf-8", "ignore").decode()))
    except TemplateInvalid:
        return


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", "A", "x" * 80, "a\0b"])
def test_a_name_that_is_a_path_is_no_template(tmp_path: Path, name: str) -> None:
    with pytest.raises(TemplateNotFound):
        read_template(Settings(home=tmp_path), name)


def test_a_users_folder_goes_before_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "memory_mb = 777")
    settings = Settings(home=tmp_path, template_path=str(tmp_path))
    assert read_template(settings, "base").definition.memory_mb == 777
    assert defined_names(settings) == {"base", "python-data"}
