"""The program that opens files where all mounts are read-only, and hands them over: see `interpreter.vm.read_only`.

Run by its path, without the package: ``python -I -S opener.py SOCKET PATH...``.
"""

import os
import socket
import sys


def main(channel: int, paths: list[str]) -> None:
    """Send the opened files in one message, or why one cannot be opened: the number of the error, and its path."""
    with socket.socket(fileno=channel) as peer:
        try:
            opened = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
        except OSError as error:
            peer.send(f"{error.errno} {error.filename}".encode())
        else:
            socket.send_fds(peer, [b"opened"], opened)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
