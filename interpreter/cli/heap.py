"""Large buffers go back to the system when they are let go of.

The C library's allocator learns from large blocks to keep such in its heap (mallopt(3), "M_MMAP_THRESHOLD"), where each
body or output of some MB that passes leaves a hole: the service would hold hundreds of MB of nothing.
"""

import ctypes
from typing import Final

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE: Final = 256 * 1024


def return_large_buffers() -> None:
    """Have blocks of 256 KiB and more be mapped each by itself, in this process; without effect where it cannot be."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Set once they stay: the allocator no longer moves them.
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
