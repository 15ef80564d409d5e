"""Settings come from the environment; one that cannot be used is named, a key that is none is refused."""

from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from interpreter import ConfigurationError, Settings, load_settings

KEY = "0123456789abcdef"


def test_state_lies_under_interpreter_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INTERPRETER_HOME", str(tmp_path))
    settings = load_settings()
    assert settings.templates_home == tmp_path / "templates"
    assert settings.scratch_home == tmp_path / "scratch"


@pytest.mark.parametrize(("name", "value"), [("ACCELERATOR", "xen"), ("RESTORE_TIMEOUT", "soon"), ("JAIL_UID", "0")])
def test_a_value_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"INTERPRETER_{name}", value)
    with pytest.raises(ConfigurationError, match=f"INTERPRETER_{name}"):
        load_settings()


@pytest.mark.parametrize(
    "key", ["", " ", "\t\n", " " * 40, KEY[:15], f" {KEY}", f"{KEY}\n", KEY[:8] + " " + KEY[8:], KEY + "ß"]
)
def test_a_key_that_guards_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("INTERPRETER_API_KEY", key)
    with pytest.raises(ConfigurationError, match="INTERPRETER_API_KEY: a key has 16") as refused:
        load_settings()
    assert not key.strip() or key.strip() not in str(refused.value)
    with pytest.raises(ValidationError) as direct:
        Settings(api_key=SecretStr(key))
    assert not key.strip() or key.strip() not in str(direct.value)


def test_a_key_is_kept_out_of_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().key is None
    monkeypatch.setenv("INTERPRETER_API_KEY", KEY)
    settings = load_settings()
    assert settings.key == KEY
    assert KEY not in f"{settings!r} {settings.model_dump_json()}"
