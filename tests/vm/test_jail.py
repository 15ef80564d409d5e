"""The jail from inside: what a small program that is run with the product's own command line may do there.

Walls are tried from both sides, so that a test cannot pass because its program does not work at all. As root the jail
of an ordinary user is tried as user 65000.
"""

import errno
import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from interpreter.errors import ProgramMissing
from interpreter.vm import jail as jail_module
from interpreter.vm.jail import USERS, Jail, Limits, new_jail
from interpreter.vm.priority import MACHINE_OOM_SCORE, NICE, behind_the_service, put_group_behind
from interpreter.vm.programs import find_program
from interpreter.vm.read_only import open_read_only
from interpreter.vm.spawn import spawn
from interpreter.vm.system_calls import open_filter

LIMITS = Limits(address_space=1 << 30, file_size=1 << 20)
ORDINARY = 65_000
PERL = Path("/usr/bin/perl")
"""The one interpreter that every Debian has and that makes system calls by their numbers."""

# Of x86-64 (syscall(2)): number and arguments.
FORBIDDEN = {
    "io_uring_setup": "425, 1, 0",
    "userfaultfd": "323, 1",
    "bpf": "321, 0, 0, 0",
    "keyctl": "250, 0, 0",
    "add_key": "248, 0, 0, 0, 0, 0",
    "perf_event_open": "298, 0, 0, 0, 0, 0",
    "ptrace": "101, 0, 0, 0, 0",
    "process_vm_writev": "311, 1, 0, 0, 0, 0, 0",
    "unshare": "272, 0x10000000",
    "setns": "308, 0, 0",
    "clone with a namespace": "56, 0x10000011, 0, 0, 0, 0",
    "clone of a process": "56, 17, 0, 0, 0, 0",
    "clone3": "435, 0, 0",
    "fork": "57",
    "mount": "165, 0, 0, 0, 0, 0",
    "open_tree": "428, -1, 0, 0",
    "pivot_root": "155, 0, 0",
    "memfd_create": "319, 0, 0",
    "setsid": "112",
    "setpriority": "141, 0, 0, 0",
    "prlimit64 of another": "302, 1, 7, 0, 0",
    "socket(AF_VSOCK)": "41, 40, 1, 0",
    "socket(AF_NETLINK)": "41, 16, 3, 0",
}


def command(jail: Jail, program: Path, arguments: Sequence[str], **descriptors: int) -> list[str]:
    return jail.command(program, arguments, LIMITS, **{"system_calls": 3, "info": 4, **descriptors})


def run_inside(script: str, *, ordinary: bool, inherited: Sequence[int] = (), confined: bool = True) -> list[str]:
    """The lines that a Perl script writes in the jail of root, or of an ordinary user; or outside, for comparison."""
    with Path(os.devnull).open("wb") as info:
        filter_program = open_filter()
        as_user = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"]
        words = [str(PERL), "-e", script]
        if confined:
            jail = Jail(user=None if ordinary else 2_000_000)
            words = command(jail, PERL, words[1:], system_calls=filter_program, info=info.fileno())
        try:
            run = subprocess.run(
                [*(as_user if ordinary and os.geteuid() == 0 else ()), *words],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                pass_fds=(filter_program, info.fileno(), *inherited),
            )
        finally:
            os.close(filter_program)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def kinds() -> list[bool]:
    """Whether the jail is that of an ordinary user: both kinds where both can be had."""
    return [False, True] if os.geteuid() == 0 else [True]


def test_a_program_that_is_missing_is_named_with_debians_package() -> None:
    with pytest.raises(ProgramMissing, match="no-such-program"):
        find_program("no-such-program")


def test_the_jail_has_every_namespace_and_limits() -> None:
    words = command(Jail(user=2_000_000), Path("/usr/bin/env"), ["true"])
    assert {"--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"} <= set(words)
    assert [part for part in words if part.startswith("CAP_")] == ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"]
    assert {"--as=1073741824", "--fsize=1048576", "--core=0", "--reuid=2000000", "--clear-groups"} <= set(words)
    assert words[-2:] == ["/usr/bin/env", "true"]


def test_without_root_the_jail_is_a_user_namespace() -> None:
    words = command(Jail(user=None), Path("/usr/bin/env"), [])
    assert "--unshare-user" in words
    assert "--cap-add" not in words


@pytest.mark.parametrize("ordinary", kinds())
def test_calls_that_no_machine_needs_are_not_there(ordinary: bool) -> None:
    tries = "".join(f'$! = 0; syscall({call}); print $! + 0, "\\n";' for call in FORBIDDEN.values())
    answers = dict(zip(FORBIDDEN, map(int, run_inside(tries, ordinary=ordinary)), strict=True))
    assert answers == dict.fromkeys(FORBIDDEN, errno.ENOSYS)


def test_calls_that_every_program_needs_are_there() -> None:
    # getpid, a socket of the one family that is left, its own limits (asked of nobody's memory).
    script = "".join(
        f"print syscall({call}) >= 0 ? 1 : $! + 0, qq(\\n);" for call in ("39", "41, 1, 1, 0", "302, 0, 7, 0, 0")
    )
    assert run_inside(script, ordinary=True) == ["1", "1", "1"]


async def test_a_file_opened_through_a_read_only_mount_cannot_be_written_by_its_owner(tmp_path: Path) -> None:
    shared = tmp_path / "rootfs"
    shared.write_text("as built")
    if os.geteuid() == 0:
        os.chown(shared, ORDINARY, ORDINARY)
    (safe,) = await open_read_only([shared])
    plain = os.open(shared, os.O_RDONLY)
    try:
        script = """
            for $number (@ARGV_) {
                open($again, "<", "/proc/self/fd/$number") or print "cannot be read: $!\n";
                print scalar(<$again>), "\n";
                $opened = open($again, "+<", "/proc/self/fd/$number");
                print $opened ? "opened for writing" : $! + 0, "\n";
            }
        """.replace("@ARGV_", f"{safe}, {plain}")
        said = run_inside(script, ordinary=True, inherited=(safe, plain))
    finally:
        os.close(safe)
        os.close(plain)
    # The second, opened in the ordinary way, shows that nothing else holds the owner back.
    assert said == ["as built", str(errno.EROFS), "as built", "opened for writing"]


async def test_a_file_that_is_missing_is_named_and_one_that_was_removed_stays_open(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await open_read_only([tmp_path / "nowhere"])
    removed = tmp_path / "removed"
    removed.write_text("still here")
    (descriptor,) = await open_read_only([removed])
    removed.unlink()
    assert os.pread(descriptor, 100, 0) == b"still here"
    os.close(descriptor)


@pytest.mark.parametrize("ordinary", kinds())
def test_nothing_in_the_jail_can_be_written(ordinary: bool) -> None:
    paths = ("/file", "/dev/file", "/dev/shm/file", "/proc/self/oom_score_adj", "/proc/self/autogroup")
    script = "".join(f'print open($f, ">", "{path}") ? "written" : $! + 0, "\\n";' for path in paths)
    assert set(run_inside(script, ordinary=ordinary)) <= {str(errno.EROFS), str(errno.EACCES), str(errno.ENOENT)}
    assert run_inside('print open($f, ">", "/proc/self/comm") ? 1 : 0', ordinary=ordinary, confined=False) == ["1"]


@pytest.mark.parametrize("ordinary", kinds())
def test_a_machine_runs_behind_the_service(ordinary: bool) -> None:
    # The nice value is the 19th field of proc_pid_stat(5); getpriority is a call that the filter does not let through.
    script = """
        open($f, "<", "/proc/self/stat"); print((split " ", <$f>)[18], "\\n");
        open($f, "<", "/proc/self/oom_score_adj"); print <$f>;
    """
    assert run_inside(script, ordinary=ordinary) == [str(os.nice(0) + NICE), str(MACHINE_OOM_SCORE)]


async def test_the_schedulers_group_of_a_machine_has_its_nice_value_too() -> None:
    process = await spawn([*behind_the_service(), "sleep", "60"])
    try:
        await put_group_behind(process.pid)
        group = Path("/proc", str(process.pid), "autogroup")
        # Systems without such groups reckon by the process's own value.
        assert not group.exists() or group.read_text().split()[-1] == str(NICE)
    finally:
        process.kill()
        await process.wait()


def test_as_root_each_machine_gets_a_user_that_nobody_else_has() -> None:
    users = [new_jail(1_000_000, kvm=False).user for _ in range(300)]
    if os.geteuid() != 0:
        assert set(users) == {None}
        return
    assert len(set(users)) == 300
    assert all(user is not None and 0 <= user - 1_000_000 < USERS for user in users)


def test_a_user_under_whom_something_runs_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail_module, "_numbers", itertools.count())
    # This process runs under the first of them.
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    user = new_jail(os.getuid(), kvm=False).user
    assert user is not None
    assert user > os.getuid()
    with pytest.raises(ProcessLookupError):
        os.getpriority(os.PRIO_USER, user)
