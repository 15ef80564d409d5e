"""Every setting, read once from ``INTERPRETER_*`` in the environment."""

import os
from enum import StrEnum
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from interpreter.errors import ConfigurationError


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class AcceleratorChoice(StrEnum):
    """What the user wants; ``auto`` asks the boot probe."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


def _default_home() -> Path:
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "interpreter"


class Settings(BaseSettings):
    """The service's settings. Environment names are the fields' names with ``INTERPRETER_`` before them."""

    model_config = SettingsConfigDict(env_prefix="INTERPRETER_", extra="ignore", frozen=True)

    home: Path = Field(default_factory=_default_home, description="Folder of all state.")
    template_path: str = Field(
        default="", description="Folders with template definitions before the shipped ones, split by ':'."
    )
    accelerator: AcceleratorChoice = Field(
        default=AcceleratorChoice.AUTO, description="auto (probe once, keep the answer), kvm or tcg."
    )
    qemu: str = Field(default="qemu-system-x86_64", description="QEMU's program, by name or path.")
    apt_sources: str | None = Field(
        default=None,
        description="apt sources for building (one line, or a file); the host's own when not given.",
    )
    pip_args: str = Field(
        default="",
        description="More arguments for pip while building, such as an index; the host's own apply.",
    )
    jail_uid: int = Field(
        default=0x7000_0000,
        ge=1000,
        le=0x7FFF_0000,
        description="First of the 65,536 user ids that machines run as when the service is root.",
    )
    boot_timeout: float = Field(
        default=900.0, gt=0, description="Seconds that a template may take from power-on to a warm kernel."
    )
    restore_timeout: float = Field(
        default=30.0, gt=0, description="Seconds that a restored guest may take until it answers."
    )

    @property
    def templates_home(self) -> Path:
        """Where built templates lie."""
        return self.home / "templates"

    @property
    def scratch_home(self) -> Path:
        """Where sessions' scratch disks lie, as files without a name."""
        return self.home / "scratch"


def load_settings() -> Settings:
    """Read the settings. Raises ConfigurationError that names each variable which cannot be used."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(
            f"INTERPRETER_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigurationError(f"a setting cannot be used: {faults}") from None
