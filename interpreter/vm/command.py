"""The machine that every session has, and the QEMU command line that makes it.

A snapshot loads only into a machine with the same devices in the same places, so this one function makes the
command line of the template's machine and of every session's. What differs is how memory is mapped and how it
starts: from a kernel, or from a snapshot.
"""

from dataclasses import dataclass
from typing import Final

from interpreter.settings import Accelerator
from interpreter.vm.channels import QemuEnds

MACHINE_TYPE: Final = "pc"
TRANSLATION_CACHE_MB: Final = 256
"""TCG's cache of translated code. Pages that it does not use cost nothing."""
CONSOLE_BYTES: Final = 65536
"""How much of the guest's console is kept for a look after a fault."""

_TCG_WITHOUT: Final = ("avx2", "avx", "fma", "f16c", "erms", "fsrm")
"""Processor features that TCG offers and that guests are better off without.

QEMU 7.2 computes some AVX2 instructions wrongly: numpy's argsort gave wrong orders and crashed, so pandas gave
wrong tables. AVX goes with it, because libraries take it for a sign of the rest. And TCG runs `rep movsb` a byte
at a time; without the two flags that praise it the guest copies in larger steps.
"""
_KVM_MODEL: Final = "host,-svm,-vmx,pmu=off"
"""No virtual machines within a guest, and no counters of the processor's: both are much of KVM that can be attacked."""
_COMMAND_LINE: Final = (
    "console=ttyS0 reboot=t panic=-1 quiet random.trust_cpu=off "
    # The clock's rate is the host's own; measured against emulated timers on a busy host it came out wrong.
    "tsc=reliable "
    # Plugged-in devices are found by the agent; ACPI's own way to notice them takes an emulated guest 0.4 s.
    "acpiphp.disable=1 acpi_mask_gpe=0x01 "
    # What would wake an idle guest.
    "psi=0 nowatchdog"
)


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a snapshot is bound to, of the machine itself."""

    memory_mb: int
    cpus: int
    accelerator: Accelerator

    @property
    def command_line(self) -> str:
        """The guest kernel's command line."""
        # Routing interrupts by ACPI takes an emulated guest 0.1 s for each new device; a single processor can do
        # without, several cannot. Under KVM none can: without it the guest has no local APIC, by which the host
        # tells that a page of the guest's which was swapped out is there again, and waits for it for ever.
        return f"{_COMMAND_LINE} acpi=noirq" if self.cpus == 1 and not self.uses_kvm else _COMMAND_LINE

    @property
    def uses_kvm(self) -> bool:
        """Whether the machine needs /dev/kvm."""
        return self.accelerator is Accelerator.KVM

    @property
    def cpu_model(self) -> str:
        """QEMU's -cpu argument."""
        if self.uses_kvm:
            return _KVM_MODEL
        return f"max,{','.join(f'-{flag}' for flag in _TCG_WITHOUT)}"


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """Open descriptors that QEMU gets; the caller keeps and closes them."""

    memory: int
    """A memfd of the machine's memory size."""
    rootfs: int
    """The root file system's image, open for reading."""
    scratch: int
    """The scratch disk, open for reading and writing."""


def boot_arguments(spec: MachineSpec, kernel: int, initramfs: int) -> list[str]:
    """Start from a kernel and an initramfs, given as open descriptors."""
    return [
        *("-kernel", f"/proc/self/fd/{kernel}"),
        *("-initrd", f"/proc/self/fd/{initramfs}"),
        *("-append", spec.command_line),
    ]


def restore_arguments() -> list[str]:
    """Wait for a snapshot; nothing runs before `cont`."""
    return ["-incoming", "defer", "-S"]


def qemu_arguments(
    spec: MachineSpec, files: MachineFiles, ends: QemuEnds, *, name: str, shared_memory: bool
) -> list[str]:
    """QEMU's arguments, without how it starts.

    ``name`` stands in the process list and names the threads. ``shared_memory``: the template's own machine writes
    the memfd.
    """
    listening = ",server=on,wait=off" if ends.listening else ""
    share = "on" if shared_memory else "off"
    accelerator = f"tcg,thread=multi,tb-size={TRANSLATION_CACHE_MB}" if spec.accelerator is Accelerator.TCG else "kvm"
    return [
        *("-name", f"{name},debug-threads=on"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        # A host that merges equal pages of tenants tells each what the others have, by the time that a write takes.
        *("-machine", f"{MACHINE_TYPE},usb=off,vmport=off,mem-merge=off,memory-backend=memory"),
        *("-accel", accelerator),
        *("-cpu", spec.cpu_model),
        *("-smp", str(spec.cpus)),
        *("-m", f"{spec.memory_mb}M"),
        *("-object", _memory_object(spec, files, share)),
        *_disk("rootfs", 1, files.rootfs, "read-only=on"),
        *_disk("scratch", 2, files.scratch, "read-only=off,discard=unmap,cache.no-flush=on"),
        *("-chardev", f"socket,id=qmp,fd={ends.control}{listening}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"ringbuf,id=console,size={CONSOLE_BYTES}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=doorbell,fd={ends.doorbell}{listening}", "-serial", "chardev:doorbell"),
        *("-chardev", f"socket,id=vsock,fd={ends.vsock}"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    ]


def _memory_object(spec: MachineSpec, files: MachineFiles, share: str) -> str:
    # Opened again through /proc: QEMU has no other way to take memory from a descriptor.
    path = f"/proc/self/fd/{files.memory}"
    return f"memory-backend-file,id=memory,size={spec.memory_mb}M,mem-path={path},share={share}"


def _disk(name: str, fd_set: int, descriptor: int, options: str) -> list[str]:
    file = f"file.driver=file,file.filename=/dev/fdset/{fd_set},file.locking=off"
    return [
        *("-add-fd", f"fd={descriptor},set={fd_set}"),
        *("-blockdev", f"driver=raw,node-name={name},{options},{file}"),
        # What the host cannot write or read is the guest's own error: to halt the machine would be the default.
        *("-device", f"virtio-blk-pci,drive={name},serial={name},werror=report,rerror=report"),
    ]
