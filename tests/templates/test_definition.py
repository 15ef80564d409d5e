"""Definitions: the shipped ones are sound; every mistake in a template.toml is named with its file and key."""

import json
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
        ('warmup = ".."', ".."),
        ('warmup = "a\\u0000b"', "warmup"),
        ('apt = "curl"', "apt"),
        ("scratch_gb = 0", "scratch_gb"),
        ("[memory_mb]", "memory_mb"),
        ("= 1", "not TOML"),
        ("cpus = " + "1" * 5000, "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(TemplateInvalid) as error:
        parse_template("x", write(tmp_path, text))
    assert named in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_every_mistake_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(TemplateInvalid, match=r"memory_mb: .*; cpus: .*; sizes: unknown key"):
        parse_template("x", write(tmp_path, "memory_mb = 1\ncpus = 0\nsizes = 1"))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    write(tmp_path, "").joinpath("template.toml").write_bytes(b'description = "\xff"')
    with pytest.raises(TemplateInvalid, match=r"template\.toml is not TOML"):
        parse_template("x", tmp_path)


def test_missing_requirements_are_named(tmp_path: Path) -> None:
    (tmp_path / "template.toml").touch()
    with pytest.raises(TemplateInvalid, match=r"requirements\.txt cannot be read"):
        parse_template("x", tmp_path)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200))
def test_arbitrary_text_is_a_definition_or_invalid(tmp_path: Path, text: str) -> None:
    try:
        parse_template("x", write(tmp_path, text.encode("utf-8", "ignore").decode()))
    except TemplateInvalid:
        return


KEYS = ("description", "suite", "apt", "requirements", "warmup", "memory_mb", "cpus", "scratch_gb", "other")
VALUES = st.one_of(
    st.text(max_size=8).map(lambda text: json.dumps(text.encode("utf-8", "ignore").decode())),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "[]", "{}", '["a"]', "[[1]]", "1979-05-27", "07:32:00"]),
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_value_of_any_key_is_a_definition_or_invalid(tmp_path: Path, values: dict[str, str]) -> None:
    folder = write(tmp_path, "".join(f"{key} = {value}\n" for key, value in values.items()))
    try:
        parse_template("x", folder)
    except TemplateInvalid:
        return


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../base", "a/b", "base/", "base\n", ".base", "/etc", "A", "x" * 80, "a\0b"]
)
def test_a_name_that_is_a_path_is_no_template(tmp_path: Path, name: str) -> None:
    with pytest.raises(TemplateNotFound):
        read_template(Settings(home=tmp_path), name)


def test_a_users_folder_goes_before_the_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", "memory_mb = 777")
    settings = Settings(home=tmp_path, template_path=str(tmp_path))
    assert read_template(settings, "base").definition.memory_mb == 777
    assert defined_names(settings) == {"base", "python-data"}


def test_the_first_of_several_folders_is_taken(tmp_path: Path) -> None:
    for number, folder in enumerate(("one", "two")):
        (tmp_path / folder / "mine").mkdir(parents=True)
        write(tmp_path / folder / "mine", f"cpus = {number + 1}")
    settings = Settings(home=tmp_path, template_path=f"{tmp_path / 'missing'}:{tmp_path / 'two'}:{tmp_path / 'one'}:")
    assert read_template(settings, "mine").definition.cpus == 2


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(TemplateNotFound, match="Known ones: base, python-data"):
        read_template(Settings(home=tmp_path), "nothing")
