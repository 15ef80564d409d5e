"""apt sources from the host's own configuration: both forms, only the suite's own entries, nobody else's lists; and
what comes out is asked of the real apt."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter import ConfigurationError
from interpreter.templates.sources import SourceFile, apt_sources, check_sources, deb822_entries, one_line_entries

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


def written(folder: Path, files: list[SourceFile]) -> list[Path]:
    (folder / "written").mkdir()
    for file in files:
        (folder / "written" / file.name).write_text(file.text)
    return [folder / "written" / file.name for file in files]


def understood(folder: Path, files: list[SourceFile]) -> set[str]:
    """What the host's own apt would fetch with these sources: each list of packages as `URL SUITE COMPONENT ARCH`."""
    found: set[str] = set()
    for path in written(folder, files):
        options = (
            "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State::lists={folder}",
            f"-oDir::Etc::sourcelist={path}",
        )
        command = ["apt-get", "--print-uris", *options, "update"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        for line in run.stdout.splitlines():
            url, _, rest = line.split("'")[1].partition("/dists/")
            if "/binary-" in rest and "binary-all" not in rest:
                suite, component, architecture = rest.rsplit("/", 3)[:3]
                found.add(f"{url} {suite} {component} {architecture.removeprefix('binary-')}")
    return found


def text_of(files: list[SourceFile]) -> str:
    return "".join(file.text for file in files)


def test_both_forms_are_taken_and_only_the_suites_own_entries(tmp_path: Path) -> None:
    files = apt_sources("bookworm", None, etc(tmp_path, deb822=DEB822, one_line=ONE_LINE))
    assert understood(tmp_path, files) == {
        "http://deb.example.org/debian bookworm main amd64",
        "http://deb.example.org/debian bookworm-updates main amd64",
        "http://sec.example.org/debian bookworm-security main amd64",
        "http://sec.example.org/debian bookworm-security contrib amd64",
    }
    assert "signed-by=/usr/share/keyrings/x.gpg" in text_of(files)
    for absent in ("trixie", "deb-src", "other.example.org", "off.example.org", "src.example.org", "third.example.org"):
        assert absent not in text_of(files)


ONE_LINES = (
    "deb http://mirror.example.org/debian bookworm main",
    "deb [trusted=yes arch=amd64] http://mirror.example.org/debian bookworm main",
    "# ours\n  deb http://mirror.example.org/debian bookworm main\n",
)
PARAGRAPH = "Types: deb\nURIs: http://mirror.example.org/debian\nSuites: bookworm\nComponents: main"


@pytest.mark.parametrize(
    ("override", "name"),
    [
        *((line, name) for line in ONE_LINES for name in (None, "mine", "mine.txt", "mine.list")),
        *((PARAGRAPH, name) for name in (None, "mine", "mine.txt", "mine.sources")),
    ],
)
def test_an_override_in_either_form_as_text_or_as_a_file(tmp_path: Path, override: str, name: str | None) -> None:
    if name:
        (tmp_path / name).write_text(override)
    files = apt_sources("bookworm", str(tmp_path / name) if name else override, tmp_path)
    assert understood(tmp_path, files) == {"http://mirror.example.org/debian bookworm main amd64"}


def test_an_override_that_is_a_folder_gives_all_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.list").write_text("deb http://one.example.org bookworm main\n")
    (folder / "a.sources").write_text("Types: deb\nURIs: http://two.example.org\nSuites: bookworm\nComponents: main\n")
    (folder / "a.list.off").write_text("deb http://off.example.org bookworm main\n")
    assert understood(tmp_path, apt_sources("bookworm", str(folder), tmp_path)) == {
        "http://one.example.org bookworm main amd64",
        "http://two.example.org bookworm main amd64",
    }


def test_what_apt_cannot_read_is_told_in_its_words_before_anything_is_built(tmp_path: Path) -> None:
    room = tmp_path / "room"
    room.mkdir()
    for text, words in (
        ("deb http://x.example.org bookworm\n", r"Malformed entry 1.*bad\.list"),
        ("# none\n", "no entry"),
    ):
        (tmp_path / "bad.list").write_text(text)
        with pytest.raises(ConfigurationError, match=words) as raised:
            check_sources(room, [tmp_path / "bad.list"])
        assert str(tmp_path) not in str(raised.value)
    (tmp_path / "good.list").write_text("deb http://x.example.org bookworm main\n")
    check_sources(room, [tmp_path / "good.list"])


@pytest.mark.parametrize("content", [None, "", "nothing of the kind\n"])
def test_an_override_that_holds_no_source_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "mine"
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match="INTERPRETER_APT_SOURCES"):
        apt_sources("bookworm", str(path), tmp_path)


def test_no_source_for_the_suite_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="INTERPRETER_APT_SOURCES"):
        apt_sources("sid", None, etc(tmp_path, deb822=DEB822))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        apt_sources("sid", str(tmp_path / "missing"), tmp_path)


def test_a_key_that_is_written_out_keeps_all_its_lines(tmp_path: Path) -> None:
    text = text_of(apt_sources("bookworm", None, etc(tmp_path, deb822=DEB822)))
    assert "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n" in text


def test_suites_over_several_lines_and_comments_between_fields(tmp_path: Path) -> None:
    suites = "Suites: trixie\n bookworm\n bookworm-updates\n"
    text = f"types: deb\n# a comment\n{suites}uris: http://x.example.org\nCOMPONENTS: main\n"
    files = apt_sources("bookworm", None, etc(tmp_path, deb822=text))
    assert {entry.split()[1] for entry in understood(tmp_path, files)} == {"bookworm", "bookworm-updates"}


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
    assert "http://deb.example.org" in text_of(apt_sources("bookworm", None, folder))


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
