"""Programs that a build runs: in a session of their own, ended as a whole when the build is."""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from interpreter.deadline import deadline
from interpreter.errors import DiskFull, ProgramMissing, TemplateBuildFailed
from interpreter.vm.priority import first_to_go
from interpreter.vm.spawn import signal_group, spawn

DEBIAN_PACKAGES: Final = {
    "apt-get": "apt",
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "mkfs.ext4": "e2fsprogs",
    "tar": "tar",
    "unshare": "util-linux",
}
_LINES_KEPT: Final = 15
_BYTES_KEPT: Final = 8192
_TERM_SECONDS: Final = 20.0


def require(program: str) -> str:
    """The program's path. Raises ProgramMissing that names Debian's package."""
    # mkfs.ext4 lies in /usr/sbin, which is not on everybody's path.
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise ProgramMissing(
            f"{program} is not installed", hint=f"Install it: apt-get install {DEBIAN_PACKAGES[program]}"
        )
    return path


async def run_program(
    command: Sequence[str | Path],
    *,
    step: str,
    stdin: int = asyncio.subprocess.DEVNULL,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program to its end. Raises TemplateBuildFailed with its last lines, DiskFull.

    ``environment`` is added to this process's own. Cancelled, it asks the program's whole session to end and waits
    until it has cleaned up after itself.
    """
    process = await spawn(
        # A service that renews a template must not share the protection that it has with what it runs for that.
        [*first_to_go(), *(str(part) for part in command)],
        environment={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
        stdin=stdin,
        # What it puts into an image is for the image's users, whatever the files of this process are.
        umask=0o022,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    # Pieces, not lines: a program may write a line of any length.
    end = b""
    try:
        assert process.stdout is not None  # noqa: S101  (asked for above)
        while piece := await process.stdout.read(_BYTES_KEPT):
            end = (end + piece)[-_BYTES_KEPT:]
        status = await process.wait()
    except BaseException:
        await _end(process)
        raise
    if status != 0:
        lines = end.decode(errors="replace").rstrip().split("\n")
        text = "\n".join(line.rstrip() for line in lines[-_LINES_KEPT:])
        if os.strerror(errno.ENOSPC) in text:
            raise DiskFull(f"no room is left ({step})", hint="Free some, or move INTERPRETER_HOME")
        raise TemplateBuildFailed(f"{step} failed with status {status}:\n{text}", hint="Mend the cause and build again")


async def _end(process: asyncio.subprocess.Process) -> None:
    # mmdebstrap unmounts and removes what it made when it is asked to end; killed, it could not.
    signal_group(process, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with deadline(_TERM_SECONDS):
            await process.wait()
    # Also when the leader has ended: what it started may not have heard.
    signal_group(process, signal.SIGKILL)
    await process.wait()
