"""A template's definition: the folder with ``template.toml``, read and checked."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interpreter.errors import TemplateInvalid, TemplateNotFound
from interpreter.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_AptPackage = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]


class Definition(BaseModel):
    """What ``template.toml`` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    suite: str = Field("bookworm", pattern=r"^[a-z][a-z0-9-]*$", description="Debian release of the root file system.")
    apt: tuple[_AptPackage, ...] = Field((), description="Debian packages besides Python.")
    requirements: str = Field("requirements.txt", description="pip requirements, pinned, beside template.toml.")
    warmup: str | None = Field(None, description="Python code that runs before the snapshot, beside template.toml.")
    memory_mb: int = Field(1024, ge=256, le=1024 * 1024)
    cpus: int = Field(1, ge=1, le=64)
    scratch_gb: int = Field(10, ge=1, le=4096, description="Size of each session's own disk, in GiB; sparse.")


@dataclass(frozen=True, slots=True)
class Template:
    """A definition with the name and folder that it has."""

    name: str
    folder: Path
    definition: Definition

    @property
    def requirements(self) -> bytes:
        """pip's requirements file."""
        return _read(self.folder / self.definition.requirements)

    @property
    def warmup(self) -> bytes:
        """The warm-up code; empty when there is none."""
        return _read(self.folder / self.definition.warmup) if self.definition.warmup else b""


def check_name(name: str) -> str:
    """The name, when it can be one: a name is also a path. Raises TemplateNotFound."""
    if not _NAME.fullmatch(name):
        raise TemplateNotFound(f"{name!r} cannot be the name of a template", hint="See `interpreter template list`")
    return name


def definition_folders(settings: Settings) -> Iterator[Path]:
    """Folders that hold definitions, the first ones going before the later ones."""
    yield from (Path(folder) for folder in settings.template_path.split(":") if folder)
    package = Path(__file__).resolve().parent.parent
    # Installed from a wheel they lie in the package, in a checkout beside it.
    yield package / "_data" / "templates"
    yield package.parent / "templates"


def read_template(settings: Settings, name: str) -> Template:
    """The definition of this name. Raises TemplateNotFound, TemplateInvalid."""
    check_name(name)
    for folder in definition_folders(settings):
        if (folder / name / "template.toml").is_file():
            return parse_template(name, folder / name)
    known = ", ".join(sorted(defined_names(settings))) or "none"
    raise TemplateNotFound(
        f"there is no template {name!r}",
        hint=f"Known ones: {known}. Put a folder with template.toml in a folder of INTERPRETER_TEMPLATE_PATH",
    )


def defined_names(settings: Settings) -> set[str]:
    """Names of all definitions that can be seen."""
    return {file.parent.name for folder in definition_folders(settings) for file in folder.glob("*/template.toml")}


def parse_template(name: str, folder: Path) -> Template:
    """Read ``template.toml`` and see that its files are there. Raises TemplateInvalid naming file and key."""
    file = folder / "template.toml"
    try:
        definition = Definition.model_validate(tomllib.loads(_read(file).decode()))
    except ValidationError as error:
        raise TemplateInvalid(f"{file}: {_faults(error)}") from None
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: tomllib also lets through what is nested too deep and numbers that are too long.
        raise TemplateInvalid(f"{file} is not TOML: {error}") from None
    for key in ("requirements", "warmup"):
        beside = getattr(definition, key)
        if beside is not None and (Path(beside).name != beside or "\0" in beside):
            raise TemplateInvalid(f"{file}: {key}: {beside!r} must be a file beside template.toml")
    template = Template(name, folder, definition)
    _ = template.requirements, template.warmup
    return template


def _faults(error: ValidationError) -> str:
    allowed = ", ".join(Definition.model_fields)
    faults: list[str] = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        unknown = fault["type"] == "extra_forbidden"
        faults.append(f"{key}: unknown key; allowed are {allowed}" if unknown else f"{key}: {fault['msg']}")
    return "; ".join(faults)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TemplateInvalid(f"{file} cannot be read: {error.strerror}") from None
