"""JAX's persistent compilation cache, which spares later runs the compilation."""

import os
import pathlib

import jax


def use_compilation_cache(folder: str | None) -> None:
    """Store compiled programs on disk and reuse those that are stored.

    Args:
        folder: the cache's folder; "off" for no cache; None for JAX_COMPILATION_CACHE_DIR where
            that is set, else a folder in the user's cache.
    """
    if folder is None and jax.config.jax_compilation_cache_dir:
        return
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = os.path.join(base, "cmap_jax", "compiled")
    jax.config.update("jax_compilation_cache_dir", None if folder == "off" else folder)
