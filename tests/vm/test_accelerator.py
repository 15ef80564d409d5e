"""Which accelerator is used is found out once, and anew when what it was found out from is another."""

from pathlib import Path

import pytest

from interpreter import Accelerator, Settings
from interpreter.vm import accelerator
from interpreter.vm.accelerator import AcceleratorAnswer, choose_accelerator


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The probes that were made."""
    made: list[Settings] = []

    async def probe(settings: Settings) -> AcceleratorAnswer:
        made.append(settings)
        return AcceleratorAnswer(Accelerator.TCG, f"probe {len(made)}")

    monkeypatch.setattr(accelerator, "_probe", probe)
    return made


async def test_an_answer_is_kept(tmp_path: Path, probed: list[Settings]) -> None:
    settings = Settings(home=tmp_path / "home")
    answers = [await choose_accelerator(settings) for _ in range(3)]
    assert [answer.reason for answer in answers] == ["probe 1"] * 3
    assert (await choose_accelerator(settings, again=True)).reason == "probe 2"
    assert len(probed) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # The user was added to the device's group: nothing about the device is another.
        ("os.access", lambda *_: True),
        # A host that had too much to do, or was set up otherwise, was started again.
        ("boot_id", lambda: "another boot"),
        ("qemu_version", lambda _: "99.0"),
    ],
    ids=["it may be opened now", "another boot", "another QEMU"],
)
async def test_an_answer_does_not_outlive_its_cause(
    tmp_path: Path, probed: list[Settings], monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(accelerator, "_DEVICE", device)
    monkeypatch.setattr(accelerator.os, "access", lambda *_: False)
    settings = Settings(home=tmp_path / "home")
    assert (await choose_accelerator(settings)).reason == "probe 1"
    monkeypatch.setattr(f"interpreter.vm.accelerator.{name}", value)
    assert (await choose_accelerator(settings)).reason == "probe 2"
