"""apt sources from the host's own configuration: both forms, only the suite's own entries, nobody else's lists."""

from pathlib import Path

import pytest

from interpreter import ConfigurationError
from interpreter.templates.sources import apt_sources

DEB822 = """# comment
Types: deb deb-src
URIs: http://deb.example.org/debian
Suites: bookworm bookworm-updates trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://other.example.org
Suites: tools-bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example.org
Suites: bookworm
Components: main
"""
ONE_LINE = """
deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://sec.example.org/debian bookworm-security main contrib
deb-src http://src.example.org bookworm main
deb http://third.example.org stable main # bookworm
"""


def etc(folder: Path, *, deb822: str = "", one_line: str = "") -> Path:
    (folder / "sources.list.d").mkdir()
    (folder / "sources.list.d" / "a.sources").write_text(deb822)
    (folder / "sources.list").write_text(one_line)
    return folder


def test_both_forms_are_taken_and_only_the_suites_own_entries(tmp_path: Path) -> None:
    text = apt_sources("bookworm", None, etc(tmp_path, deb822=DEB822, one_line=ONE_LINE))
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "-----BEGIN PGP PUBLIC KEY BLOCK-----" in text
    assert "Suites: bookworm-security\n" in text
    assert "Signed-By: /usr/share/keyrings/x.gpg" in text
    for absent in ("trixie", "deb-src", "other.example.org", "off.example.org", "src.example.org", "third.example.org"):
        assert absent not in text


def test_an_override_is_taken_as_it_is(tmp_path: Path) -> None:
    line = "deb http://mirror.example.org/debian bookworm main"
    assert apt_sources("bookworm", line, tmp_path) == line
    file = tmp_path / "mine.sources"
    file.write_text("Types: deb\n")
    assert apt_sources("bookworm", str(file), tmp_path) == "Types: deb\n"


def test_no_source_for_the_suite_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="INTERPRETER_APT_SOURCES"):
        apt_sources("sid", None, etc(tmp_path, deb822=DEB822))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        apt_sources("sid", str(tmp_path / "missing"), tmp_path)
