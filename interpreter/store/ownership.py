"""One service per state folder: two would take each other's machines for their own."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from interpreter.errors import ConfigurationError, HostError
from interpreter.private import private_home


@contextmanager
def own_home(home: Path) -> Generator[None]:
    """Hold the state folder. Raises ConfigurationError when another service does, HostError."""
    private_home(home)
    try:
        descriptor = os.open(home / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"{home} cannot be used: {error.strerror}") from None
    try:
        try:
            # Gone with the process, however that ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"another service runs on {home}", hint="Stop it, or give this one an INTERPRETER_HOME of its own"
            ) from None
        yield
    finally:
        os.close(descriptor)
