"""Files of this machine on their way: a progress bar, and errors in words."""

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from interpreter.cli.terminal import err
from interpreter.errors import ConfigurationError


@contextlib.contextmanager
def local_file(path: Path) -> Generator[None]:
    """Raises ConfigurationError for what the system says of ``path``."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be used: {error.strerror or error}") from None


@contextlib.contextmanager
def transfer_bar(name: str, *, quiet: bool) -> Generator[Callable[[int, int | None], None]]:
    """Show how far a transfer is, on a terminal. Yields what takes the bytes done and, where known, in all."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal) as bar:
        task = bar.add_task(escape(plain(name)), total=None)

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield progress


def plain(text: str) -> str:
    """Text of a session's that is safe on a terminal: none of it moves the cursor or colours what follows."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
