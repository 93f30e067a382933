"""Settings of the process that make it fast: the compilation cache and the C library's memory."""

import ctypes
import glob
import os
import pathlib
import sys

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
# Numbers of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# Larger blocks go back to the kernel: where two of them do not fit, one must not stay behind.
_LARGEST_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, on a Linux machine without an accelerator.

    XLA's CPU back end allocates the scratch of a step anew each time. By default that comes fresh
    from the kernel, zeroed page by page: up to a quarter of a step's time. Threads share
    one arena, for the others cannot hold blocks so large. Call it before JAX computes anything:
    its threads would have arenas of their own already.

    Returns:
        Whether it was done: not with an accelerator, nor with another C library than glibc.
    """
    if not sys.platform.startswith("linux") or any(map(glob.glob, _ACCELERATORS)):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = {_MMAP_THRESHOLD: _LARGEST_KEPT, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
    return all(mallopt(number, value) for number, value in settings.items())


def use_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs on disk, for the next start.

    Args:
        folder: where; None for the user's cache folder, "off" for nowhere. Without ``folder``,
            JAX's own JAX_COMPILATION_CACHE_DIR goes first.
    """
    import jax

    if folder is None and jax.config.jax_compilation_cache_dir:
        return
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = os.path.join(base, "cmap_jax", "compiled")
    jax.config.update("jax_compilation_cache_dir", None if folder == "off" else folder)
