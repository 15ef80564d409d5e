"""Every setting, read once from ``INTERPRETER_*`` in the environment."""

import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from interpreter.errors import ConfigurationError

MAX_TIMEOUT: Final = 28_800
"""Seconds that a session lives at most: eight hours."""
_KEY: Final = re.compile(r"[\x21-\x7e]{16,}")
"""No shorter: a key that can be guessed is none. No others: a header must be able to carry it as it is."""


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

    model_config = SettingsConfigDict(env_prefix="INTERPRETER_", extra="ignore", frozen=True, hide_input_in_errors=True)

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
        description="apt sources for building (text, a file or a folder); the host's own when not given.",
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
    renew_templates: bool = Field(
        default=False, description="Whether `interpreter serve` builds outdated templates anew by itself."
    )
    boot_timeout: float = Field(
        default=900.0, gt=0, description="Seconds that a template may take from power-on to a warm kernel."
    )
    restore_timeout: float = Field(
        default=30.0, gt=0, description="Seconds that a restored guest may take until it answers."
    )

    host: str = Field(
        default="127.0.0.1", description="Address that the service listens on; loopback only without a key."
    )
    port: int = Field(default=8888, ge=0, le=65535, description="Port that the service listens on; 0 takes a free one.")
    api_key: SecretStr | None = Field(
        default=None, description="Guards every route of the service when set; 16 characters or more."
    )
    default_template: str = Field(default="python-data", description="Template of a session that names none.")
    default_timeout: int = Field(
        default=900, ge=1, le=MAX_TIMEOUT, description="Seconds that a session lives when it names no timeout."
    )
    pool: dict[str, Annotated[int, Field(ge=0, le=1000)]] = Field(
        default={}, description='Restored machines kept ready per template, as JSON: {"python-data": 2}.'
    )
    health_interval: float = Field(default=30.0, gt=0, description="Seconds between two checks of each session.")
    health_timeout: float = Field(default=20.0, gt=0, description="Seconds that a healthy guest may take to answer.")
    max_sessions: int = Field(default=200, ge=1, description="Sessions at once, in all.")
    max_sessions_per_tenant: int = Field(default=200, ge=1, description="Sessions at once of one tenant.")
    max_cpus: int = Field(
        default=0, ge=0, description="vCPUs of all sessions together; 0: 32 for each of the host's processors."
    )
    session_memory_mb: int = Field(
        default=160, ge=1, description="Memory of its own that a new session is expected to take, in MiB."
    )
    memory_reserve_mb: int = Field(
        default=1024, ge=0, description="Memory that the host keeps free, in MiB: no session starts that would take it."
    )
    session_disk_mb: int = Field(
        default=256, ge=0, description="Disk that a new session is expected to take of the host's, in MiB."
    )
    disk_reserve_mb: int = Field(
        default=1024, ge=0, description="Disk that the host keeps free, in MiB: no session starts that would take it."
    )
    disk_limit_mb: int = Field(
        default=0,
        ge=0,
        description="Disk of the host's that one session may take, in MiB; 0: its template's scratch_gb.",
    )
    queue_size: int = Field(default=32, ge=0, description="Requests for a session that may wait for room.")
    queue_seconds: float = Field(default=10.0, ge=0, description="Seconds that a request for a session waits for room.")
    session_buffer_mb: int = Field(
        default=96,
        ge=16,
        description="Memory of the service for one session, in MiB: code, notebooks, outputs, messages, bodies of "
        "requests, what waits for readers.",
    )
    output_limit: int = Field(default=10_000_000, ge=1, description="Bytes of output that one execution keeps.")
    upload_limit: int = Field(default=100_000_000, ge=1, description="Bytes that one request may upload or bring.")
    client_limit: int = Field(
        default=32_000_000, ge=1, description="Bytes of output that wait for one Jupyter client, also while it is away."
    )
    message_limit: int = Field(
        default=100_000_000, ge=1000, description="Bytes that one message of a Jupyter client may have."
    )
    cull_idle_timeout: int = Field(
        default=0,
        ge=0,
        le=MAX_TIMEOUT,
        description="Seconds after which a Jupyter kernel that is not used is shut down; 0: the default timeout.",
    )
    cull_busy: bool = Field(default=False, description="Whether a Jupyter kernel is also culled while it is busy.")
    cull_connected: bool = Field(
        default=False, description="Whether a Jupyter kernel is also culled while a client is connected."
    )
    kernel_env: list[str] = Field(
        default=[],
        description="Variables that Jupyter clients may set in their kernels, besides KERNEL_*, as a JSON list.",
    )
    gateway_buffers: bool = Field(
        default=False,
        description="Whether Jupyter Server's gateway client gets binary messages: it breaks on them, as of 2.21.",
    )
    interrupt_grace: float = Field(
        default=5.0,
        gt=0,
        description="Seconds that interrupted code may take to end before its kernel is restarted. Calls that an "
        "interrupt has to wait for do not count, for up to a minute in all.",
    )
    drain_seconds: float = Field(
        default=10.0, ge=0, description="Seconds that running cells are given when the service is stopped."
    )
    keep_sessions_days: int = Field(
        default=90, ge=0, description="Days that a session stays in the list after its end; 0: for ever."
    )
    keep_results_days: int = Field(
        default=30, ge=0, description="Days that the result of a detached execution is kept; 0: for ever."
    )
    keep_usage_days: int = Field(
        default=400, ge=0, description="Days that what a session used is kept after its end; 0: for ever."
    )
    session_results: int = Field(default=1000, ge=1, description="Detached executions that are kept of one session.")
    session_results_mb: int = Field(
        default=100, ge=1, description="Results of detached executions that are kept of one session, in MB."
    )
    cpu_hour_rate: float = Field(default=0.0895, ge=0, description="Price of one vCPU hour, in your currency.")
    gb_hour_rate: float = Field(default=0.00945, ge=0, description="Price of one GB of memory for an hour.")

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, value: SecretStr | None) -> SecretStr | None:
        # Set but empty is a mistake (a variable that was not filled in), not the wish for a service without a key.
        if value is not None and not _KEY.fullmatch(value.get_secret_value()):
            raise PydanticCustomError(
                "key", "a key has 16 or more printable ASCII characters and no spaces; unset it to have none"
            )
        return value

    @property
    def key(self) -> str | None:
        """The key that guards the service; None when there is none. Never empty."""
        return None if self.api_key is None else self.api_key.get_secret_value()

    @property
    def database(self) -> Path:
        """The service's SQLite file."""
        return self.home / "service.sqlite"

    @property
    def machines_home(self) -> Path:
        """Where each machine of the service has a folder for its sockets."""
        return self.home / "machines"

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
            for fault in error.errors(include_input=False)
        )
        raise ConfigurationError(f"a setting cannot be used: {faults}") from None
