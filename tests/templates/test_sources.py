"""apt sources from the host's own configuration: both forms, only the suite's own entries, nobody else's lists."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter import ConfigurationError
from interpreter.templates.sources import apt_sources, deb822_entries, one_line_entries

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


def test_a_one_line_entry_becomes_a_paragraph_with_its_options(tmp_path: Path) -> None:
    line = "deb [arch=amd64,arm64 trusted=yes] http://deb.example.org/debian bookworm main contrib # ours"
    assert apt_sources("bookworm", None, etc(tmp_path, one_line=line)).splitlines() == [
        "Types: deb",
        "URIs: http://deb.example.org/debian",
        "Suites: bookworm",
        "Components: main contrib",
        "Architectures: amd64 arm64",
        "Trusted: yes",
    ]


def test_a_key_that_is_written_out_keeps_all_its_lines(tmp_path: Path) -> None:
    text = apt_sources("bookworm", None, etc(tmp_path, deb822=DEB822))
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n" in text


def test_third_party_lists_are_left_out_also_when_nothing_else_is_there(tmp_path: Path) -> None:
    folder = etc(tmp_path)
    (folder / "sources.list.d" / "other.list").write_text("deb http://other.example.org tools main\n")
    with pytest.raises(ConfigurationError, match="no apt source for Debian bookworm"):
        apt_sources("bookworm", None, folder)


@pytest.mark.parametrize("value", ["no", "No", "false", "0"])
def test_an_entry_that_is_off_is_left_out(tmp_path: Path, value: str) -> None:
    entry = f"Types: deb\nEnabled: {value}\nURIs: http://deb.example.org\nSuites: bookworm\nComponents: main\n"
    with pytest.raises(ConfigurationError):
        apt_sources("bookworm", None, etc(tmp_path, deb822=entry))


def test_an_override_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.sources").write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        apt_sources("bookworm", str(tmp_path / "x.sources"), tmp_path)


def test_a_comment_that_is_not_utf_8_does_no_harm(tmp_path: Path) -> None:
    folder = etc(tmp_path)
    (folder / "sources.list").write_bytes(b"# \xfc\ndeb http://deb.example.org bookworm main\n")
    assert "URIs: http://deb.example.org" in apt_sources("bookworm", None, folder)


@given(st.text(max_size=300))
def test_arbitrary_text_gives_entries_of_the_wanted_suites_only(text: str) -> None:
    assert all(" bookworm" in entry for entry in one_line_entries(text, {"bookworm"}))
    assert all("Suites: bookworm" in entry for entry in deb822_entries(text, {"bookworm"}))


FIELDS = ("Types: deb", "Suites: bookworm", "Suites: x", "URIs: http://deb.example.org", " more", "# x", "", "Enabled:")


@given(st.lists(st.sampled_from(FIELDS), max_size=12))
def test_paragraphs_in_any_order_name_only_the_wanted_suite(lines: list[str]) -> None:
    for entry in deb822_entries("\n".join(lines), {"bookworm"}):
        assert "Types: deb" in entry.splitlines()
        assert "Suites: bookworm" in entry.splitlines()
