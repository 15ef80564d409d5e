"""Checks built files against their hashes, before their first use and again whenever they were touched.

Hashing hundreds of megabytes on each restore would cost more than the restore. So what was checked is kept with
the file's identity (device, inode, size and both times); every write changes one of these, unless it follows
within one tick of the file system's clock. So a file that was changed a moment ago is checked but not kept as such.
"""

import json
import time
from pathlib import Path
from typing import Any, Final, cast

from interpreter.errors import SnapshotDamaged
from interpreter.private import write_private
from interpreter.templates.manifest import FileRecord, record_file

_CHECKED: Final = ".checked.json"
_TICK_NS: Final = 2_000_000_000
"""Coarser than the clock of any file system that is in use (FAT's has two seconds)."""


def verify_files(folder: Path, records: dict[str, FileRecord], *, hint: str) -> None:
    """Check the files of a folder. Blocks. Raises SnapshotDamaged naming the first file that is not as built."""
    checked = _read_checked(folder)
    now: dict[str, list[int]] = {}
    for name, record in records.items():
        path, began = folder / name, time.time_ns()
        try:
            identity = _identity(path)
        except FileNotFoundError:
            raise SnapshotDamaged(f"{path} is missing", hint=hint) from None
        if checked.get(name) != identity:
            found = record_file(path)
            if found.size != record.size:
                raise SnapshotDamaged(f"{path} has {found.size} bytes, it was built with {record.size}", hint=hint)
            if found.digest != record.digest:
                raise SnapshotDamaged(f"{path} was altered after it was built", hint=hint)
        if began - identity[-1] > _TICK_NS:
            now[name] = identity
    if now != checked:
        write_private(folder / _CHECKED, json.dumps(now))


def _identity(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _read_checked(folder: Path) -> dict[str, Any]:
    try:
        value: Any = json.loads((folder / _CHECKED).read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
