"""A guest's memory, read and written from outside the process that holds it.

Sessions map their memory privately, so the descriptors that a vhost-user front end sends show the template's
pages, not the guest's. QEMU's own mapping, reached by process id, is what the guest sees.

Ranges are flat ``array("Q")`` of address, length, address, length, ...: the layout of ``struct iovec``, so that
thousands of them go to one system call as they are. Addresses in them are those of the process that holds the
memory; ``MemoryMap.translate`` makes them from what a guest wrote, and nothing else may.
"""

import bisect
import ctypes
import errno
import os
import select
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from interpreter.errors import GuestMisbehaved, MachineDied, VsockError

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_WORDS_PER_CALL: Final = 2 * IOV_MAX
_FIRST_BUFFER: Final = 256 * 1024


def ranges(*pairs: tuple[int, int]) -> "array[int]":
    """The flat form of some (address, length) pairs."""
    return array("Q", [word for pair in pairs for word in pair])


@dataclass(frozen=True, slots=True)
class Region:
    """One piece of guest memory: ``size`` bytes at ``guest_address``, at ``user_address`` in its process."""

    guest_address: int
    size: int
    user_address: int


class MemoryMap:
    """Where guest-physical addresses lie in the process that holds the memory."""

    def __init__(self, regions: Iterable[Region]) -> None:
        """Raises VsockError when a region is empty, wraps around, or overlaps another."""
        self._regions = sorted(regions, key=lambda region: region.guest_address)
        end = 0
        for region in self._regions:
            if region.size <= 0 or min(region.guest_address, region.user_address) < 0:
                raise VsockError(f"memory region of {region.size} bytes at {region.guest_address:#x} cannot be used")
            if max(region.guest_address, region.user_address) + region.size > 1 << 64:
                raise VsockError(f"memory region at {region.guest_address:#x} wraps around")
            if region.guest_address < end:
                raise VsockError(f"memory regions overlap at {region.guest_address:#x}")
            end = region.guest_address + region.size
        self._starts = [region.guest_address for region in self._regions]
        # Nearly all of a guest's buffers lie in one region; the last one that matched is tried first.
        self._low = self._high = self._offset = 0

    def translate(self, address: int, length: int) -> int:
        """The user address of a guest-physical range. Raises GuestMisbehaved unless all of it lies in one region.

        A range across two regions is refused even where they touch: no guest's allocator gives one out, since
        what lies between RAM regions of this machine type is never RAM.
        """
        if self._low <= address and address + length <= self._high:
            return address + self._offset
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0:
            region = self._regions[index]
            end = region.guest_address + region.size
            # Python's integers do not wrap, so a sum beyond 2**64 is simply too large.
            if address + length <= end and address < end:
                self._low, self._high = region.guest_address, end
                self._offset = region.user_address - region.guest_address
                return address + self._offset
        raise GuestMisbehaved(f"the guest pointed outside its memory: {length} bytes at {address:#x}")

    def check_user_range(self, address: int, length: int) -> int:
        """Return ``address`` when the range, given as user address, lies in one region. Raises VsockError."""
        for region in self._regions:
            if region.user_address <= address and address + length <= region.user_address + region.size:
                return address
        raise VsockError(f"a ring at {address:#x} of {length} bytes is not in guest memory")


class GuestMemory(Protocol):
    """Memory that takes flat ranges (see the module). ``ProcessMemory`` is the real one."""

    def read(self, ranges: "array[int]", length: int) -> memoryview:
        """Read ``length`` bytes, the sum of the ranges. The view is good until the next read."""
        ...

    def write(self, ranges: "array[int]", data: bytes | bytearray) -> None:
        """Write ``data``, as long as the sum of the ranges."""
        ...


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)


def _transfer_function(name: str) -> "ctypes._NamedFuncPointer":  # pyright: ignore[reportPrivateUsage]
    function = _libc[name]
    function.restype = ctypes.c_ssize_t
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    return function


_readv = _transfer_function("process_vm_readv")
_writev = _transfer_function("process_vm_writev")


class ProcessMemory:
    """The memory of another process, by process_vm_readv(2) and process_vm_writev(2).

    Each call is one system call as long as it has at most IOV_MAX ranges.
    """

    def __init__(self, pid: int) -> None:
        """Raises MachineDied when there is no such process."""
        self._pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise MachineDied(f"the machine's process {pid} is gone") from None
        self._exited = select.poll()
        self._exited.register(self.pidfd, select.POLLIN)
        self._local = _Iovec()
        self._local_address = ctypes.addressof(self._local)
        self._resize(_FIRST_BUFFER)

    def close(self) -> None:
        """Let go of the process."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def check_alive(self) -> None:
        """Raises MachineDied when the process has ended.

        To be called once for each wake-up: a process id can be given to another process only some thousand forks
        after its end, which is much longer than one wake-up takes.
        """
        if self.pidfd < 0 or self._exited.poll(0):
            raise MachineDied(f"the machine's process {self._pid} has ended")

    def read(self, ranges: "array[int]", length: int) -> memoryview:
        """See GuestMemory. Raises MachineDied, or VsockError when a range is not mapped."""
        if length > len(self._buffer):
            self._resize(1 << (length - 1).bit_length())
        self._transfer(_readv, self._buffer_address, ranges, length)
        return self._view[:length]

    def write(self, ranges: "array[int]", data: bytes | bytearray) -> None:
        """See GuestMemory. Raises MachineDied, or VsockError when a range is not mapped."""
        source = data if isinstance(data, bytearray) else bytearray(data)
        # The export pins the bytearray's storage while the kernel reads it; it ends with this call.
        storage = (ctypes.c_char * len(source)).from_buffer(source)
        self._transfer(_writev, ctypes.addressof(storage), ranges, len(source))

    def _resize(self, size: int) -> None:
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._buffer_address = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))

    def _transfer(
        self,
        function: "ctypes._NamedFuncPointer",  # pyright: ignore[reportPrivateUsage]
        local: int,
        ranges: "array[int]",
        length: int,
    ) -> None:
        address, words = ranges.buffer_info()
        if words <= _WORDS_PER_CALL:
            self._call(function, local, length, address, words // 2)
            return
        for start in range(0, words, _WORDS_PER_CALL):
            part = ranges[start : start + _WORDS_PER_CALL]
            size = sum(part[1::2])
            self._call(function, local, size, part.buffer_info()[0], len(part) // 2)
            local += size

    def _call(
        self,
        function: "ctypes._NamedFuncPointer",  # pyright: ignore[reportPrivateUsage]
        local: int,
        length: int,
        remote: int,
        count: int,
    ) -> None:
        self._local.base = local
        self._local.length = length
        moved = int(function(self._pid, self._local_address, 1, remote, count, 0))
        if moved == length:
            return
        if moved < 0:
            number = ctypes.get_errno()
            if number == errno.ESRCH:
                raise MachineDied(f"the machine's process {self._pid} has ended")
            if number != errno.EFAULT:
                raise VsockError(
                    f"cannot reach the machine's memory: {os.strerror(number)}",
                    hint="This process needs the right to trace QEMU: run it as QEMU's parent or as root",
                )
        raise VsockError(f"the machine's memory is not all mapped: {max(moved, 0)} of {length} bytes moved")
