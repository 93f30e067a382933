"""How the C library hands memory back to the system."""

import ctypes
import sys

# Parameters of glibc's mallopt: above what size a block is a mapping of its own, and how much free
# memory at the top is given back.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let freed blocks be used again; for a program's start, on Linux with glibc.

    By default every array above 32 MB, and at first above 128 KB, comes fresh from the kernel,
    zeroed page by page. Decoding photographs takes a third longer so, a training step on CPU a
    quarter. In return the process keeps the most that it ever used.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, _BYTES)
    mallopt(_M_TRIM_THRESHOLD, _BYTES)
