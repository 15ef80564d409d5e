"""The guest's first file system: busybox, the drivers in the order of loading, and ``init.sh``.

The format is cpio "newc" (kernel: Documentation/driver-api/early-userspace/buffer-format.rst). The same input gives the
same bytes: names sorted, times 0, owner root.
"""

import gzip
import lzma
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from interpreter.errors import TemplateBuildFailed

MODULES: Final = (
    "virtio_blk",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "virtio_net",
    "virtio_pci",
    "squashfs",
    "overlay",
)
"""What the guest needs; their own needs are loaded before them. No module is loaded later: none is in the image."""

_DIRECTORY: Final = 0o040755
_FILE: Final = 0o100644
_PROGRAM: Final = 0o100755


@dataclass(frozen=True, slots=True)
class Entry:
    """One file or folder of the archive."""

    mode: int
    content: bytes = b""


def make_initramfs(kernel_tree: Path, busybox: Path, init: bytes) -> bytes:
    """The initramfs for the unpacked kernel package in ``kernel_tree``. Raises TemplateBuildFailed."""
    entries = {
        "bin": Entry(_DIRECTORY),
        "bin/busybox": Entry(_PROGRAM, busybox.read_bytes()),
        "dev": Entry(_DIRECTORY),
        "init": Entry(_PROGRAM, init),
        "modules": Entry(_DIRECTORY),
    }
    modules = load_order(_module_files(kernel_tree), MODULES)
    for path in modules:
        entries[f"modules/{_module_name(path)}.ko"] = Entry(_FILE, _unpacked(path))
    order = "".join(f"{_module_name(path)}.ko\n" for path in modules)
    entries["modules/order"] = Entry(_FILE, order.encode())
    return gzip.compress(cpio(entries), compresslevel=6, mtime=0)


def cpio(entries: Mapping[str, Entry]) -> bytes:
    """The archive of ``entries``, sorted by name, so that folders come before what is in them."""
    parts: list[bytes] = []
    for number, (name, entry) in enumerate(sorted(entries.items()), 1):
        parts += _record(number, name, entry)
    parts += _record(0, "TRAILER!!!", Entry(0))
    return b"".join(parts)


def load_order(files: Mapping[str, Path], wanted: Iterable[str]) -> list[Path]:
    """The wanted modules and all that they need, each after its own needs. Raises TemplateBuildFailed."""
    order: list[Path] = []

    def add(name: str, chain: tuple[str, ...]) -> None:
        path = files.get(name)
        if path is None:
            # Built into this kernel, or not there: insmod of a dependant would tell.
            return
        if path in order or name in chain:
            return
        for need in _needs(path):
            add(need, (*chain, name))
        order.append(path)

    for name in wanted:
        if name not in files:
            raise TemplateBuildFailed(f"the kernel package has no module {name}")
        add(name, ())
    return order


def _record(number: int, name: str, entry: Entry) -> list[bytes]:
    encoded = name.encode() + b"\0"
    fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return [head, bytes(-len(head) % 4), entry.content, bytes(-len(entry.content) % 4)]


def _module_files(kernel_tree: Path) -> dict[str, Path]:
    return {_module_name(path): path for path in kernel_tree.glob("**/lib/modules/**/*.ko*")}


def _module_name(path: Path) -> str:
    return path.name.split(".", 1)[0].replace("-", "_")


def _needs(path: Path) -> list[str]:
    # Each module says so itself, in its section .modinfo: depends=a,b
    content = _unpacked(path)
    start = content.find(b"\0depends=")
    if start < 0:
        return []
    value = content[start + 9 : content.index(b"\0", start + 9)].decode("ascii")
    return [name.replace("-", "_") for name in value.split(",") if name]


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
