"""What a machine is made of, by the accelerator that it runs on."""

from pathlib import Path

import pytest

from interpreter import Accelerator, Settings
from interpreter.vm.accelerator import probe_machine
from interpreter.vm.command import MachineSpec


@pytest.mark.parametrize(
    ("accelerator", "cpus", "without"),
    [(Accelerator.TCG, 1, True), (Accelerator.TCG, 2, False), (Accelerator.KVM, 1, False), (Accelerator.KVM, 2, False)],
)
def test_interrupts_are_routed_by_acpi_but_in_one_emulated_processor(
    accelerator: Accelerator, cpus: int, without: bool
) -> None:
    """Under KVM a guest without has no local APIC, and is not told that a page of it was read in again."""
    assert ("acpi=noirq" in MachineSpec(512, cpus, accelerator).command_line.split()) is without


def test_a_guest_under_kvm_has_neither_virtual_machines_nor_counters_of_the_processor() -> None:
    model = MachineSpec(512, 1, Accelerator.KVM).cpu_model.split(",")
    assert model[0] == "host"
    assert {"-svm", "-vmx", "pmu=off"} <= set(model)


async def test_the_host_may_not_merge_a_machines_memory_with_that_of_others(tmp_path: Path) -> None:
    async with probe_machine(Accelerator.TCG, Settings(home=tmp_path)) as machine:
        flags = [
            line.split()[1:]
            for line in Path(f"/proc/{machine.pid}/smaps").read_text(encoding="utf-8").splitlines()
            if line.startswith("VmFlags:")
        ]
    assert flags
    assert not [one for one in flags if "mg" in one]
