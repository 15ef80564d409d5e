"""Where the builder gets packages: the host's own apt configuration, unless a setting overrides it.

apt's sources come in two forms (sources.list(5)): one line for each, or paragraphs ("deb822").
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from interpreter.errors import ConfigurationError

# Options that have another name in a paragraph, and spaces where a line has commas.
_LISTS = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
_NO = {"no", "false", "without", "off", "disable", "0"}
_ONE_LINE = re.compile(r"^deb\s+(?:\[[^\]]*\]\s+)?\S+\s+(?P<suite>\S+)\s+\S+")


def apt_sources(suite: str, override: str | None, etc: Path = Path("/etc/apt")) -> str:
    """The text of apt sources for ``suite``: its entries and those of its updates and security, of no others.

    ``override`` is one line, or the path of a file. Raises ConfigurationError when nothing fits.
    """
    if override:
        return override if override.lstrip().startswith(("deb ", "Types:")) else _read_override(Path(override))
    wanted = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    lines = [line for file in _files(etc, ".list") for line in one_line_entries(_text(file), wanted)]
    paragraphs = [part for file in _files(etc, ".sources") for part in deb822_entries(_text(file), wanted)]
    if not lines and not paragraphs:
        raise ConfigurationError(
            f"this host has no apt source for Debian {suite}",
            hint="Set INTERPRETER_APT_SOURCES to a line such as 'deb URL SUITE main', or to a file",
        )
    # One file has one form; one-line entries are easily written as paragraphs.
    return "\n\n".join([*paragraphs, *(_paragraph(line) for line in lines)]) + "\n"


def one_line_entries(text: str, wanted: set[str]) -> Iterator[str]:
    """The lines for binary packages of the wanted suites."""
    for line in text.splitlines():
        entry = line.split("#", 1)[0].strip()
        if (match := _ONE_LINE.match(entry)) and match["suite"] in wanted:
            yield entry


def deb822_entries(text: str, wanted: set[str]) -> Iterator[str]:
    """The paragraphs for binary packages, each with only the wanted ones of its suites."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields = _fields(paragraph)
        suites = [suite for suite in fields.get("suites", "").split() if suite in wanted]
        if suites and "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() not in _NO:
            kept = {**fields, "types": "deb", "suites": " ".join(suites)}
            yield "\n".join(f"{name.title()}: {value}" for name, value in kept.items())


def apt_options() -> list[str]:
    """The host's proxy settings for apt, as options of mmdebstrap."""
    run = subprocess.run(
        ["apt-config", "dump", "--format", "%f %v%n", "Acquire"], capture_output=True, text=True, check=False
    )
    pairs = [shlex.split(line) for line in run.stdout.splitlines()]
    proxies = [pair for pair in pairs if len(pair) == 2 and re.search("::proxy", pair[0], re.IGNORECASE)]
    return [f'--aptopt={name} "{value}"' for name, value in proxies]


def _files(etc: Path, ending: str) -> Iterator[Path]:
    if ending == ".list" and (etc / "sources.list").is_file():
        yield etc / "sources.list"
    yield from sorted((etc / "sources.list.d").glob(f"*{ending}"))


def _text(file: Path) -> str:
    # Only a comment can hold what is not UTF-8.
    return file.read_text(encoding="utf-8", errors="replace")


def _fields(paragraph: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            # A field's further lines: a key written out, mostly. A paragraph that begins with one has no field yet.
            if name:
                fields[name] += "\n" + line
        elif ":" in line:
            name, value = line.split(":", 1)
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _paragraph(line: str) -> str:
    match = re.match(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<rest>.*)", line)
    if match is None:
        raise ConfigurationError(f"an apt source cannot be read: {line}")
    fields = {"Types": "deb", "URIs": match["uri"], "Suites": match["suite"], "Components": match["rest"]}
    for option in (match["options"] or "").split():
        name, _, value = option.partition("=")
        if name in _LISTS:
            fields[_LISTS[name]] = value.replace(",", " ")
        else:
            fields[name.title()] = value
    return "\n".join(f"{name}: {value}" for name, value in fields.items())


def _read_override(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"INTERPRETER_APT_SOURCES: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"INTERPRETER_APT_SOURCES: {path} is not UTF-8 text") from None
