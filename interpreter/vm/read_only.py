"""Files of the host, opened so that nobody who gets the descriptors can ever write them, not even the files' owner.

A descriptor that is open for reading is no protection: its holder opens ``/proc/self/fd/N`` again, for writing, and
what is asked then are the rights of the file. Without root a machine runs as the service's own user, who owns the
template's files. But what was opened through a read-only mount stays on that mount, however it is opened again. So a
small program opens them where bubblewrap has made every mount read-only, and hands them over.
"""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Final

from interpreter.errors import HostError
from interpreter.vm import opener
from interpreter.vm.programs import find_program
from interpreter.vm.spawn import spawn

MOST_FILES: Final = 64
_MESSAGE_BYTES: Final = 8192


async def open_read_only(paths: Sequence[Path]) -> list[int]:
    """Open at most 64 files through read-only mounts. The caller closes them. Raises OSError, HostError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        command = [
            *(str(find_program("bwrap")), "--die-with-parent", "--ro-bind", "/", "/", "--"),
            *(sys.executable, "-I", "-S", opener.__file__, str(theirs.fileno())),
            *(str(path.absolute()) for path in paths),
        ]
        process = await spawn(command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, pass_fds=(theirs.fileno(),))
        theirs.close()
        _, words = await process.communicate()
        said, opened, _, _ = socket.recv_fds(ours, _MESSAGE_BYTES, MOST_FILES)
    if len(opened) == len(paths):
        return opened
    number, _, name = said.decode().partition(" ")
    if number.isdecimal():
        raise OSError(int(number), os.strerror(int(number)), name)
    raise HostError(
        f"files cannot be opened through read-only mounts: {words.decode(errors='replace').strip()[:200]}",
        hint="See `interpreter doctor`",
    )
