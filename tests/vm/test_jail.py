"""The jail's command line: every namespace, no capability but those for becoming another user, no path of state."""

import os
from pathlib import Path

import pytest

from interpreter.errors import ProgramMissing
from interpreter.vm.jail import Jail, Limits, new_jail
from interpreter.vm.programs import find_program

LIMITS = Limits(address_space=1 << 30, file_size=1 << 20)


def test_a_program_that_is_missing_is_named_with_debians_package() -> None:
    with pytest.raises(ProgramMissing, match="no-such-program"):
        find_program("no-such-program")


def test_the_jail_has_every_namespace_and_limits() -> None:
    command = Jail(user=2_000_000).command(Path("/usr/bin/env"), ["true"], LIMITS)
    assert {"--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"} <= set(command)
    assert [part for part in command if part.startswith("CAP_")] == ["CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"]
    assert {"--as=1073741824", "--fsize=1048576", "--core=0", "--reuid=2000000", "--clear-groups"} <= set(command)
    assert command[-2:] == ["/usr/bin/env", "true"]


def test_without_root_the_jail_is_a_user_namespace() -> None:
    command = Jail(user=None).command(Path("/usr/bin/env"), [], LIMITS)
    assert "--unshare-user" in command
    assert "--cap-add" not in command


def test_as_root_each_machine_gets_a_user_of_its_own_range() -> None:
    user = new_jail(1_000_000, kvm=False).user
    assert user is None if os.geteuid() != 0 else user is not None and 0 <= user - 1_000_000 < 0x10000
