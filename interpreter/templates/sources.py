"""Where the builder gets packages: the host's own apt configuration, unless a setting overrides it.

apt's sources come in two forms (sources.list(5)): one line for each, or paragraphs ("deb822"). Entries are handed on as
they are written, only chosen by their suite; apt itself then says whether it can read them.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Final, NoReturn

from interpreter.errors import ConfigurationError
from interpreter.templates.process import require

_NO: Final = {"no", "false", "without", "off", "disable", "0"}
_ONE_LINE: Final = re.compile(r"deb\s+(\[[^\]]*\]\s+)?\S+\s+(?P<suite>\S+)(\s|$)")
_PARAGRAPH: Final = re.compile(r"^(?!#)[^\s:]+:", re.MULTILINE)
_LINES, _PARAGRAPHS = ".list", ".sources"
_SETTING: Final = "INTERPRETER_APT_SOURCES"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of apt sources; the ending of its name tells apt its form."""

    name: str
    text: str


def apt_sources(suite: str, override: str | None, etc: Path = Path("/etc/apt")) -> list[SourceFile]:
    """The apt sources for ``suite``: the host's entries for it and for its updates and security, no others.

    ``override`` is taken whole instead: entries as text in one of the forms, or the path of a file or of a folder of
    such. Raises ConfigurationError when there is nothing for the suite or it cannot be read. Blocks.
    """
    if override:
        return _overridden(override)
    wanted = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    lines: list[str] = []
    paragraphs: list[str] = []
    for file in _files(etc):
        # Only a comment can hold what is not UTF-8.
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == _LINES:
            lines += one_line_entries(text, wanted)
        else:
            paragraphs += deb822_entries(text, wanted)
    if not lines and not paragraphs:
        raise ConfigurationError(
            f"this host has no apt source for Debian {suite}",
            hint=f"Set {_SETTING} to a line such as 'deb URL SUITE main', to a file or to a folder",
        )
    found = (SourceFile("host.list", "\n".join(lines)), SourceFile("host.sources", "\n\n".join(paragraphs)))
    return [SourceFile(file.name, f"{file.text}\n") for file in found if file.text]


def one_line_entries(text: str, wanted: set[str]) -> Iterator[str]:
    """The lines for binary packages of the wanted suites."""
    for line in text.splitlines():
        entry = line.split("#", 1)[0].strip()
        if (match := _ONE_LINE.match(entry)) and match["suite"] in wanted:
            yield entry


def deb822_entries(text: str, wanted: set[str]) -> Iterator[str]:
    """The paragraphs for binary packages, each with only the wanted ones of its suites."""
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for paragraph in re.split(r"\n\s*\n", uncommented):
        # The same form as a mail's head: names, and values that go on in lines that begin with a space.
        fields = HeaderParser().parsestr(paragraph.strip("\n"))
        suites = [suite for suite in str(fields.get("Suites", "")).split() if suite in wanted]
        is_on = str(fields.get("Enabled", "yes")).strip().lower() not in _NO
        if suites and is_on and "deb" in str(fields.get("Types", "")).split():
            kept = {name.title(): value for name, value in fields.items()}
            kept |= {"Types": "deb", "Suites": " ".join(suites)}
            yield "\n".join(f"{name}: {value}" for name, value in kept.items())


def check_sources(folder: Path, files: list[Path]) -> None:
    """Have apt read the files, without asking anybody for packages. ``folder`` is empty and apt's for the moment.

    Blocks. Raises ConfigurationError with apt's words.
    """
    options = (f"Dir::Etc::sourceparts={folder}", f"Dir::State::lists={folder}", "Dir::Etc::main=/dev/null")
    for file in files:
        command = [require("apt-get"), "--print-uris", *(f"-o{option}" for option in options)]
        run = subprocess.run(
            [*command, f"-oDir::Etc::sourcelist={file}", "update"], capture_output=True, text=True, check=False
        )
        if run.returncode != 0 or not run.stdout.strip():
            words = run.stderr.strip().replace(str(file), file.name) or "there is no entry in it"
            raise ConfigurationError(
                f"apt cannot read the sources: {words}", hint=f"See sources.list(5), or {_SETTING}"
            )


def apt_options() -> list[str]:
    """The host's proxy settings for apt, as options of mmdebstrap."""
    run = subprocess.run(
        ["apt-config", "dump", "--format", "%f %v%n", "Acquire"], capture_output=True, text=True, check=False
    )
    pairs = [shlex.split(line) for line in run.stdout.splitlines()]
    proxies = [pair for pair in pairs if len(pair) == 2 and re.search("::proxy", pair[0], re.IGNORECASE)]
    return [f'--aptopt={name} "{value}"' for name, value in proxies]


def _files(etc: Path) -> Iterator[Path]:
    if (etc / "sources.list").is_file():
        yield etc / "sources.list"
    yield from _parts(etc / "sources.list.d")


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in (_LINES, _PARAGRAPHS) and path.is_file())


def _overridden(override: str) -> list[SourceFile]:
    if _form_of(override):
        return [SourceFile(f"given{_form_of(override)}", f"{override.strip()}\n")]
    path = Path(override)
    if path.is_dir():
        return [_read(file) for file in _parts(path)] or _refuse(f"{path} holds no file *.list or *.sources")
    return [_read(path)]


def _read(path: Path) -> SourceFile:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        _refuse(f"{path} cannot be read: {error.strerror}")
    except ValueError:
        _refuse(f"{path} is not UTF-8 text")
    # As apt has it a name tells the form; of any other name the text does.
    ending = path.suffix if path.suffix in (_LINES, _PARAGRAPHS) else _form_of(text)
    return SourceFile(f"{path.stem}{ending}", text) if ending else _refuse(f"{path} holds no apt source")


def _form_of(text: str) -> str | None:
    """The ending of a file with this text; None when it is in neither form."""
    if re.search(r"^\s*deb(-src)?\s", text, re.MULTILINE):
        return _LINES
    return _PARAGRAPHS if _PARAGRAPH.search(text) and "\n" in text.strip() else None


def _refuse(what: str) -> NoReturn:
    raise ConfigurationError(f"{_SETTING}: {what}")
