"""What the agent does to the system that it runs on, as root: clock, entropy, names, buses, power."""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

# linux/random.h: _IOW('R', 3, int[2]) and _IO('R', 7).
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_RB_AUTOBOOT = 0x01234567
_RB_HALT = 0xCDEF0123
_MS_BIND = 4096
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_VSOCK_DRIVER = Path("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport")
_LIBC = ctypes.CDLL(None, use_errno=True)


def add_entropy(entropy: bytes) -> None:
    """Mix the host's random bytes into the kernel's generator, and make it use them now (random(4))."""
    with open("/dev/random", "wb", buffering=0) as device:  # noqa: PTH123
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(device, _RNDRESEEDCRNG)


def set_clock(clock_ns: int) -> int:
    """Set the wall clock; returns what it shows then."""
    time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)
    return time.time_ns()


def set_names(hostname: str, machine_id: str) -> None:
    """Set host name, machine id and boot id."""
    socket.sethostname(hostname)
    Path("/etc/hostname").write_text(hostname + "\n", encoding="ascii")
    Path("/etc/hosts").write_text(f"127.0.0.1 localhost {hostname}\n::1 localhost\n", encoding="ascii")
    Path("/etc/machine-id").write_text(machine_id + "\n", encoding="ascii")
    # The kernel's own boot id cannot be changed, only covered.
    cover = Path("/run/boot_id")
    mounted = cover.exists()
    boot_id = os.urandom(16).hex()
    cover.write_text("-".join((boot_id[:8], boot_id[8:12], boot_id[12:16], boot_id[16:20], boot_id[20:])) + "\n")
    if not mounted:
        mount(str(cover), "/proc/sys/kernel/random/boot_id", "", _MS_BIND)


def rescan_pci() -> None:
    """Look for devices that were plugged in; a driver that fits is bound when this returns."""
    Path("/sys/bus/pci/rescan").write_text("1", encoding="ascii")


def remove_vsock() -> None:
    """Take each vsock device away from its driver, which ends all streams over it."""
    for device in _VSOCK_DRIVER.glob("virtio*"):
        (device.resolve().parent / "remove").write_text("1", encoding="ascii")


def raise_loopback() -> None:
    """Set the loopback interface up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = bytearray(struct.pack("16sH14x", b"lo", 0))
        fcntl.ioctl(probe, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def stay_in_memory() -> None:
    """Keep all of this process in memory that is or comes there (mlockall(2)), its program and libraries as well."""
    if _LIBC.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        raise OSError(ctypes.get_errno(), "mlockall")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError."""
    arguments = (source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None)
    if _LIBC.mount(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def restart_machine() -> None:
    """End the machine at once: QEMU takes the guest's restart for its end."""
    os.sync()
    with contextlib.suppress(OSError):
        _LIBC.reboot(_RB_AUTOBOOT)
    _LIBC.reboot(_RB_HALT)
