"""The compilation cache: what one start compiled, the next one reads."""

import os
import pathlib

import jax


def use_compilation_cache(folder: str | None) -> None:
    """Keep compiled programs on disk, for the next start.

    Args:
        folder: where; None for the user's cache folder, "off" for nowhere. Without ``folder``,
            JAX's own JAX_COMPILATION_CACHE_DIR goes first.
    """
    if folder is None and jax.config.jax_compilation_cache_dir:
        return
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = os.path.join(base, "cmap_jax", "compiled")
    jax.config.update("jax_compilation_cache_dir", None if folder == "off" else folder)
