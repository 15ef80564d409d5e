"""Settings come from the environment; one that cannot be used is named."""

from pathlib import Path

import pytest

from interpreter import ConfigurationError, load_settings


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
