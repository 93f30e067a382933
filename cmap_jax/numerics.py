"""Small numerical helpers that many packages use: precision, norms, sizes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The floor of every normalisation (docs/method.md, section 1): l2(x) = x / max(||x||, 1e-12).
NORM_FLOOR = 1e-12


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return ``x`` as float32, or as float64 if it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def inverse_norm(squared: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return ``1 / max(sqrt(squared), 1e-12)``; 0 at 0, where the gradient is 0 too.

    Args:
        squared: squared norms, 0 or more, float32 or float64.
    """
    floor = NORM_FLOOR**2
    # The inner where keeps the derivative of rsqrt away from zero: a where alone passes on NaN.
    inverse = jax.lax.rsqrt(jnp.where(squared > floor, squared, 1.0))
    inverse = jnp.where(squared > floor, inverse, 1 / NORM_FLOOR)
    return jnp.where(squared == 0, 0.0, inverse)


def l2_normalize(x: Float[Array, "*shape D"]) -> Float[Array, "*shape D"]:
    """``x / max(||x||, 1e-12)`` on the last axis, in float32 or better (docs/method.md, section 1).

    At x = 0 (or where its square underflows) the value and the gradient are exactly zero.
    """
    x = at_least_float32(x)
    return x * inverse_norm(jnp.sum(x * x, axis=-1, keepdims=True))


def round_up(number: int, step: int) -> int:
    """Return the least multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step
