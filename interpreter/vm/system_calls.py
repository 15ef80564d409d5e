"""The system calls that a jailed QEMU may make: an allow list, as a filter program for the kernel (seccomp(2)).

The list is what QEMU 7.2 was seen to make under emulation, from boot over restore and plugging to the end, with what
later releases, KVM and other versions of the C library do in the same places. Of a few calls only one use is on it.
bubblewrap sets the filter for its own process 1, too, and before it runs `setpriv` and `prlimit`, so their calls are
listed as well; QEMU then forbids itself most of them (``-sandbox``).

Everything else answers ENOSYS: to a program that is the same as an older kernel, for which it has another way. So a
QEMU or a C library that is newer than this list goes on where it can, and where it cannot it says "Function not
implemented" in its own words. Killing would be no safer, since the call is not made either way, and would end sessions
for a call that was only tried. A call of another architecture (32 bits, x32) does end its thread.
"""

import ctypes
import errno
import functools
import os
from typing import Final

from interpreter.errors import ProgramMissing
from interpreter.vm.memory import opened_again, seal

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_UNKNOWN: Final = -1
_MASKED_EQUAL: Final = 7
_EQUAL: Final = 4
_AF_UNIX: Final = 1
_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020000
"""The flags of clone(2) that make new namespaces."""

_FILES: Final = (
    "access close close_range dup dup2 dup3 eventfd2 faccessat faccessat2 fadvise64 fallocate fcntl fdatasync flock "
    "fstat fstatfs fsync ftruncate getcwd getdents64 ioctl lseek lstat newfstatat open openat pipe2 pread64 preadv "
    "preadv2 pwrite64 pwritev pwritev2 read readlink readlinkat readv stat statfs statx sync_file_range umask "
    "write writev"
)
_MEMORY: Final = (
    "brk get_mempolicy madvise mbind mincore mlock mlock2 mmap mprotect mremap msync munlock munmap set_mempolicy"
)
_WAITING: Final = (
    "clock_getres clock_gettime clock_nanosleep epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait futex "
    "futex_wait futex_waitv futex_wake gettimeofday nanosleep poll ppoll pselect6 restart_syscall select time "
    "timerfd_create timerfd_gettime timerfd_settime"
)
_SIGNALS: Final = (
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sigaltstack signalfd4 tgkill"
)
_PROCESS: Final = (
    "arch_prctl capget execve exit exit_group get_robust_list getcpu getegid geteuid getgid getpid getppid "
    "getrandom getresgid getresuid getrlimit getrusage gettid getuid membarrier prctl rseq sched_getaffinity "
    "sched_getparam sched_getscheduler sched_yield seccomp set_robust_list set_tid_address sysinfo times uname wait4"
)
_BECOMING_ANOTHER_USER: Final = "capset setgroups setresgid setresuid"
_SOCKETS: Final = (
    "accept accept4 connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg "
    "sendto setsockopt shutdown"
)

ALLOWED: Final = tuple(
    " ".join((_FILES, _MEMORY, _WAITING, _SIGNALS, _PROCESS, _BECOMING_ANOTHER_USER, _SOCKETS)).split()
)
"""The calls that are allowed whatever their arguments. On an architecture that lacks one it is left out."""


class _Comparison(ctypes.Structure):
    # libseccomp's struct scmp_arg_cmp: argument, operator, two values (of a masked comparison the mask is the first).
    _fields_ = (("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


_ALLOWED_ONLY: Final = (
    # Threads, no processes and no namespaces. clone3 keeps its flags in memory, where no filter can see them: the C
    # library falls back to clone when it is told that there is none.
    ("clone", _Comparison(0, _MASKED_EQUAL, _CLONE_THREAD | _CLONE_NEW, _CLONE_THREAD)),
    # No AF_VSOCK above all: network namespaces do not hold it.
    ("socket", _Comparison(0, _EQUAL, _AF_UNIX)),
    ("socketpair", _Comparison(0, _EQUAL, _AF_UNIX)),
    # Its own limits; a process that is not 0 would be another's.
    ("prlimit64", _Comparison(0, _EQUAL, 0)),
)


_DEVICE: Final = (
    "brk clock_gettime clock_nanosleep close epoll_create1 epoll_ctl epoll_pwait epoll_wait exit exit_group fcntl "
    "fstat futex getpeername getpid getrandom getsockname getsockopt gettid ioctl lseek madvise mmap mprotect mremap "
    "munmap newfstatat pidfd_open poll ppoll process_vm_readv process_vm_writev read readlink readlinkat recvfrom "
    "recvmsg rseq rt_sigaction rt_sigprocmask rt_sigreturn sched_yield sendmsg sendto set_robust_list shutdown "
    "sigaltstack write"
)
"""What a vsock device's process calls once it has moved in: nothing that opens a file, and no new process or thread."""


_DEVICE_ONLY: Final = (("socketpair", _Comparison(0, _EQUAL, _AF_UNIX)),)


def open_filter() -> int:
    """A machine's filter program as a new descriptor, at its beginning; the caller closes it. Raises ProgramMissing."""
    return opened_again(_machine_program())


def open_device_filter() -> int:
    """That of a device's process; else as `open_filter`."""
    return opened_again(_device_program())


@functools.cache
def _machine_program() -> int:
    return _compile([*((name, ()) for name in ALLOWED), *((name, (only,)) for name, only in _ALLOWED_ONLY)])


@functools.cache
def _device_program() -> int:
    return _compile([*((name, ()) for name in _DEVICE.split()), *((name, (only,)) for name, only in _DEVICE_ONLY)])


def _compile(rules: list[tuple[str, tuple[_Comparison, ...]]]) -> int:
    """Compile a list; a sealed memfd that stays open."""
    library = _library()
    context = library.seccomp_init(_ERRNO | errno.ENOSYS)
    if not context:
        raise MemoryError
    program = os.memfd_create("system-calls", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        for name, comparisons in rules:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == _UNKNOWN:
                # Newer than this libseccomp, which knows no number for it.
                continue
            array = (_Comparison * len(comparisons))(*comparisons)
            _check(library.seccomp_rule_add_array(context, _ALLOW, number, len(comparisons), array))
        _check(library.seccomp_export_bpf(context, program))
    finally:
        library.seccomp_release(context)
    seal(program)
    return program


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise ProgramMissing("libseccomp is not installed", hint="Install it: apt-get install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    library.seccomp_rule_add_array.argtypes = (
        *(ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    )
    library.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.seccomp_release.argtypes = (ctypes.c_void_p,)
    library.seccomp_release.restype = None
    return library


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, f"libseccomp: {os.strerror(-result)}")
