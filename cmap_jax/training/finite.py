"""Whether arrays are finite: a state that is not must never be called a good checkpoint."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmap_jax.workdir.fingerprint import is_on_host


def not_finite(tree: Any) -> list[str]:
    """Return the paths of the arrays with a NaN or an infinity, such as "params/w".

    A finite loss may come from a step that leaves NaN in the parameters.

    Args:
        tree: arrays of any dtype, on the devices or on the host.
    """
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(x.dtype, jnp.inexact) and not _is_finite(x)
    ]


def _is_finite(x: np.ndarray | jax.Array) -> bool:
    if is_on_host(x):
        return bool(np.isfinite(np.asarray(x)).all())
    return bool(jax.device_get(_all_finite(x)))


@jax.jit
def _all_finite(x: jax.Array) -> jax.Array:
    """Return a scalar bool; compiled once for each shape."""
    return jnp.isfinite(x).all()
