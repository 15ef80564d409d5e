"""Manifests: they come back as they were written; a snapshot's conditions tell what has changed since."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpreter import Accelerator, Settings, SnapshotDamaged
from interpreter.templates.definition import Definition, Template, parse_template, read_template
from interpreter.templates.manifest import (
    Conditions,
    FileRecord,
    Manifest,
    Snapshot,
    conditions_of,
    content_hash,
    read_json,
    write_json,
)
from interpreter.vm.command import MachineSpec

CONDITIONS = conditions_of(MachineSpec(512, 1, Accelerator.TCG), "7.2.0")


def manifest() -> Manifest:
    return Manifest(
        name="base",
        content_hash="a" * 64,
        definition=Definition.model_validate({"apt": ["curl"], "warmup": "warmup.py"}),
        kernel_version="6.1",
        apt_packages={"curl": "7"},
        python_packages={"ipykernel": "7.0"},
        build_seconds={"image": 1.5},
        files={"vmlinuz": FileRecord(size=1, digest="b")},
    )


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = manifest()
    write_json(written, tmp_path / "manifest.json")
    assert read_json(Manifest, tmp_path / "manifest.json") == written
    assert written.spec(Accelerator.TCG) == MachineSpec(1024, 1, Accelerator.TCG)


def test_a_snapshot_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = Snapshot(conditions=CONDITIONS, boot_seconds=1.25, files={"memory": FileRecord(size=2, digest="c")})
    write_json(written, tmp_path / "snapshot.json")
    assert read_json(Snapshot, tmp_path / "snapshot.json") == written


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qemu_version", "8.2.0"),
        ("accelerator", Accelerator.KVM),
        ("cpu_model", "other"),
        ("machine", "other"),
        ("command_line", "-other"),
        ("memory_mb", 1024),
        ("cpus", 2),
    ],
)
def test_each_condition_that_differs_is_named_alone(key: str, value: object) -> None:
    other = CONDITIONS.model_copy(update={key: value})
    assert other != CONDITIONS
    assert CONDITIONS.differences(other) == f"{key}: {getattr(CONDITIONS, key)} is now {value}"


def test_equal_conditions_have_no_differences() -> None:
    again = Conditions.model_validate_json(CONDITIONS.model_dump_json())
    assert again == CONDITIONS
    assert CONDITIONS.differences(again) == ""


def test_another_size_of_machine_is_another_condition() -> None:
    differences = CONDITIONS.differences(conditions_of(MachineSpec(1024, 2, Accelerator.TCG), "7.2.0"))
    assert "memory_mb: 512 is now 1024" in differences
    assert "cpus: 1 is now 2" in differences


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_damaged_manifest(content: bytes) -> None:
    path = Path("/proc/self/fd") / str(_memory_file(content))
    try:
        with pytest.raises(SnapshotDamaged, match="is damaged"):
            read_json(Manifest, path)
    finally:
        os.close(int(path.name))


def _memory_file(content: bytes) -> int:
    memory = os.memfd_create("manifest")
    os.pwrite(memory, content, 0)
    return memory


def test_a_manifest_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(manifest(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SnapshotDamaged, match="manifest.json is damaged"):
        read_json(Manifest, path)
    with pytest.raises(FileNotFoundError):
        read_json(Manifest, tmp_path / "missing.json")


def test_the_content_hash_follows_definition_requirements_and_warmup(tmp_path: Path) -> None:
    def hash_of(toml: str, requirements: str, warmup: str) -> str:
        (tmp_path / "template.toml").write_text(f'warmup = "warmup.py"\n{toml}')
        (tmp_path / "requirements.txt").write_text(requirements)
        (tmp_path / "warmup.py").write_text(warmup)
        return content_hash(parse_template("x", tmp_path))

    base = hash_of("", "a==1", "1")
    assert hash_of("# a comment is no change", "a==1", "1") == base
    assert len({base, hash_of("cpus = 2", "a==1", "1"), hash_of("", "a==2", "1"), hash_of("", "a==1", "2")}) == 4


def test_the_content_hash_is_the_same_wherever_the_definition_lies(tmp_path: Path) -> None:
    template = read_template(Settings(home=tmp_path), "base")
    for file in template.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert content_hash(Template("mine", tmp_path, template.definition)) == content_hash(template)
