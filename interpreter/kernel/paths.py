"""Paths in a session, checked before they are sent, and what the guest's refusals about them come to.

Names are bytes to the guest's system. Here they are text as Python's own functions have it: a byte that is not UTF-8
is a lone surrogate (``surrogateescape``). To the guest such a name goes as bytes.
"""

from typing import Final

from interpreter.errors import (
    BadPath,
    FileExists,
    FileNotFound,
    FilePermission,
    FolderNotEmpty,
    GuestRefused,
    IsAFolder,
    NoSpace,
    NotAFolder,
    TransferError,
)
from interpreter.kernel.versions import RAW_NAMES, check_known

MAX_PATH: Final = 4096
"""Longest path, in bytes."""
MAX_NAME: Final = 255
"""Longest part of a path, in bytes."""
_ERRORS: Final[dict[str, type[TransferError]]] = {
    "not_found": FileNotFound,
    "exists": FileExists,
    "not_a_directory": NotAFolder,
    "is_a_directory": IsAFolder,
    "not_empty": FolderNotEmpty,
    "permission": FilePermission,
    "no_space": NoSpace,
    "bad_request": BadPath,
}


def check_path(path: str) -> str:
    """Give a path back that the guest's system can take. Raises BadPath."""
    if not path:
        raise BadPath("A path is needed")
    if "\0" in path:
        raise BadPath("A path has no zero bytes")
    encoded = name_bytes(path)
    if len(encoded) > MAX_PATH:
        raise BadPath(f"The path has {len(encoded)} bytes, at most {MAX_PATH} can be used")
    if (longest := max(map(len, encoded.split(b"/")))) > MAX_NAME:
        raise BadPath(f"A part of the path has {longest} bytes, a name has at most {MAX_NAME}")
    return path


def name_bytes(name: str) -> bytes:
    """The bytes that a name, or a path, is to the guest's system. Raises BadPath."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadPath("A path is text that UTF-8 can hold") from None


def on_wire(name: str) -> str | bytes:
    """A name, or a path, as the guest gets it. Raises BadPath."""
    encoded = name_bytes(name)
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def sent_path(path: str, version: int) -> str | bytes:
    """A checked path as an agent of ``version`` takes it. Raises BadPath, GuestRefused."""
    sent = on_wire(path)
    if isinstance(sent, bytes):
        check_known(RAW_NAMES, version)
    return sent


def refusal(what: str, error: GuestRefused) -> TransferError:
    """The error for what the guest refused; ``what`` is what could not be done."""
    return _ERRORS.get(error.guest_code, TransferError)(f"{what}: {error.message}")
