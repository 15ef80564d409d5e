"""What is known of a built template: ``manifest.json`` for its files, ``snapshot.json`` for the snapshot beside it."""

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interpreter.errors import SnapshotDamaged, TemplateOutdated
from interpreter.private import write_private
from interpreter.settings import Accelerator
from interpreter.templates.definition import Definition, Template
from interpreter.templates.rootfs import builder_sources
from interpreter.vm.command import MACHINE_TYPE, MachineSpec
from interpreter.vm.memory import extents

FORMAT: Final = 1
_MODULES: Final = Path("/sys/module")
_FIRST_AGENT: Final = 1
"""Version of the agent in builds from before it was noted."""
MANIFEST: Final = "manifest.json"
SNAPSHOT_MANIFEST: Final = "snapshot.json"
_BLOCK: Final = 64 * 1024


class FileRecord(BaseModel):
    """One built file."""

    model_config = ConfigDict(frozen=True)

    size: int
    digest: str


class Conditions(BaseModel):
    """What a snapshot is bound to: under any other QEMU, accelerator or processor it is not loaded."""

    model_config = ConfigDict(frozen=True)

    qemu_version: str
    accelerator: Accelerator
    cpu_model: str
    machine: str
    command_line: str = ""
    """Empty in snapshots from before it was noted, which therefore fit nowhere."""
    memory_mb: int
    cpus: int

    def differences(self, other: "Conditions") -> str:
        """What differs, for a message to the user."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return ", ".join(f"{key}: {mine[key]} is now {theirs[key]}" for key in mine if mine[key] != theirs[key])


class Snapshot(BaseModel):
    """``snapshot.json``."""

    conditions: Conditions
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    boot_seconds: float
    """From power-on to a warm kernel."""
    files: dict[str, FileRecord]


class Manifest(BaseModel):
    """``manifest.json``."""

    format: Literal[1] = FORMAT
    agent_version: int = _FIRST_AGENT
    name: str
    content_hash: str
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    definition: Definition
    kernel_version: str
    apt_packages: dict[str, str]
    python_packages: dict[str, str]
    build_seconds: dict[str, float]
    files: dict[str, FileRecord]

    def spec(self, accelerator: Accelerator) -> MachineSpec:
        """The machine that this template runs on."""
        return MachineSpec(self.definition.memory_mb, self.definition.cpus, accelerator)


def conditions_of(spec: MachineSpec, qemu_version: str) -> Conditions:
    """What a snapshot made now would be bound to."""
    cpu_model = spec.cpu_model
    if spec.accelerator is Accelerator.KVM:
        cpu_model = f"{cpu_model} ({_host_processor()}; {_host_kvm()})"
    return Conditions(
        qemu_version=qemu_version,
        accelerator=spec.accelerator,
        cpu_model=cpu_model,
        machine=MACHINE_TYPE,
        command_line=spec.command_line,
        memory_mb=spec.memory_mb,
        cpus=spec.cpus,
    )


def content_hash(template: Template) -> str:
    """What a template is made of, as one SHA-256: its definition and everything of ours that goes into it."""
    digest = hashlib.sha256(template.definition.model_dump_json().encode())
    parts = [template.requirements, template.warmup, *(path.read_bytes() for path in builder_sources())]
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def record_file(path: Path) -> FileRecord:
    """Size and digest of a file. Blocks."""
    with path.open("rb", buffering=0) as file:
        return FileRecord(size=os.fstat(file.fileno()).st_size, digest=_digest(file.fileno()))


def _digest(descriptor: int) -> str:
    """SHA-256 over the blocks that are not all zeros, each with its place: a hole and written zeros are the same.

    So the cost is that of the data; a scratch disk is 10 GiB of which a few MB are written.
    """
    digest = hashlib.sha256()
    zeros = bytes(_BLOCK)
    done = 0
    for start, end in extents(descriptor):
        for offset in range(max(done, start - start % _BLOCK), end, _BLOCK):
            block = os.pread(descriptor, _BLOCK, offset)
            if block != zeros[: len(block)]:
                digest.update(offset.to_bytes(8, "big"))
                digest.update(block)
            done = offset + _BLOCK
    return digest.hexdigest()


T = TypeVar("T", Manifest, Snapshot)


def read_json(kind: type[T], path: Path) -> T:
    """Read a manifest. Raises SnapshotDamaged when it is not one, TemplateOutdated, FileNotFoundError."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        if fault["loc"] == ("format",):
            raise TemplateOutdated(f"{path} was written by another version", hint="Build the template anew") from None
        where = ".".join(str(part) for part in fault["loc"])
        raise SnapshotDamaged(f"{path} is damaged: {where} {fault['msg']}", hint="Build the template again") from None


def write_json(value: BaseModel, path: Path) -> None:
    """Write a manifest."""
    write_private(path, json.dumps(value.model_dump(mode="json"), indent=2) + "\n")


def _host_processor() -> str:
    wanted = ("model name", "stepping", "microcode", "flags")
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n", 1)[0].splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    about = hashlib.sha256("|".join(fields.get(key, "") for key in wanted).encode()).hexdigest()[:12]
    return f"{fields.get('model name', 'unknown')}, {about}"


def _host_kvm() -> str:
    # What a guest was told of the host: another kernel, or KVM with other options, may offer it no more.
    options = {
        f"{module}.{name}": file.read_text(encoding="ascii").strip()
        for module, name in (("kvm_amd", "nested"), ("kvm_intel", "nested"), ("kvm_amd", "npt"), ("kvm_intel", "ept"))
        if (file := _MODULES / module / "parameters" / name).exists()
    }
    return ", ".join((os.uname().release, *(f"{name}={value}" for name, value in options.items())))
