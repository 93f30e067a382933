"""How far a score of bfloat16 pieces may be from the float32 score (docs/method.md, section 11)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from cmap_jax import scoring
from cmap_jax.numerics import at_least_float32
from cmap_jax.retrieval.scores import Levels, values

# The squared norm of a weighted image below which underflow might matter.
LEAST_SQUARE = 2.0**-66

_UNIT = 2.0**-23  # relative error of an addition, whether it rounds or truncates
_SPLIT = 3.02 * 2.0**-16  # relative error of products of two pieces each
_FUNCTION = 16 * _UNIT  # relative error of an inverse square root and of the product with it
_SLACK = 1.05  # terms of second order, and the rounding of the margin itself
_LARGEST_WEIGHT, _LARGEST_NORM = 2.0**10, 2.0**10
_RANGE = (2.0**-40, 2.0**40)  # norms of queries without underflow or overflow


def _sum_error(terms: int) -> float:
    """Return the relative error of a sum of products in any order, to the sum of magnitudes.

    Matrix units add sixteen products and their accumulator at once; a sixteenth more and a few
    additions for the rest cover that.
    """
    return (1.125 * terms + 64) * _UNIT


def margins(
    query: scoring.ComposedQuery, levels: Levels, largest: Float32[Array, "L"]
) -> Float32[Array, "B"]:
    """Return the most by which a score of queries in two pieces and the float32 score differ.

    Args:
        query: B queries.
        levels: the gallery, [N, D] each.
        largest: largest norm of an image at each level.

    Returns:
        Infinite where nothing is known: a query or an image has elements that are so large or so
        small that products may under- or overflow.
    """
    width = jax.tree.leaves(levels)[0].shape[1]
    # A bfloat16 gallery's score in float32 is a sum of bfloat16 products too.
    products = 5 if values(levels[0]).dtype == jnp.bfloat16 else 1
    relative = _SPLIT + _sum_error(3 * width) + _sum_error(products * width)
    # A weighted term also has the error of its norm, which is half that of the squared norm.
    relative = _SLACK * (1.5 * relative + 2 * _FUNCTION)
    total, is_known = jnp.zeros(len(query)), jnp.isfinite(largest).all()
    # A level that is not zero but small underflows, whatever the queries.
    is_known &= ((largest == 0) | (largest >= _RANGE[0])).all() & (largest <= _LARGEST_NORM).all()
    terms = len(query.branches) * len(query.levels)
    for branch in query.branches:
        ratio = _ratios(branch)  # [L, B, D], or [1, B, D]
        norm = jnp.linalg.norm(ratio, axis=-1)
        if branch.weight is None:
            norm = norm * largest[:, None]
        # A norm below this range might be zero only because its square underflows.
        most = jnp.abs(ratio).max(axis=-1)
        is_usual = (branch.numerator == 0).all(axis=-1)
        is_usual |= (most >= _RANGE[0]) & (norm <= _RANGE[1])
        norm = jnp.broadcast_to(norm, (len(largest), len(query)))
        if branch.weight is not None:
            is_usual &= (jnp.abs(branch.weight) <= _LARGEST_WEIGHT).all(axis=-1)
        is_known = is_known & is_usual.all(axis=0)
        total += norm.sum(axis=0)
    # The terms are added up, in either pass.
    margin = total * (relative + 2 * terms * _UNIT)
    return jnp.where(is_known, margin, jnp.inf)


def _ratios(branch: scoring.Branch) -> jax.Array:
    """Return vectors whose norm bounds a branch's sum of magnitudes, [L, B, D] or [1, B, D].

    That is n / w with a weight: the sum of |n t| is at most |n / w| times |w t|. Without one it
    is n, and the sum at most |n| times |t|.
    """
    numerator = at_least_float32(branch.numerator)
    if branch.weight is None:
        return numerator
    return jnp.where(numerator == 0, 0.0, numerator / at_least_float32(branch.weight))


@jax.jit
def largest_norms(levels: Levels) -> Float32[Array, "L"]:
    """Return the largest norm of an image at each level; NaN or infinite where an element is."""
    return jnp.stack([_largest_norm(at_least_float32(values(level))) for level in levels])


def _largest_norm(rows: Float32[Array, "N D"]) -> Float32[Array, ""]:
    """Return the largest norm of a row, also where its square would underflow."""
    most = jnp.abs(rows).max()
    squares = jnp.square(rows / jnp.where(most == 0, 1.0, most)).sum(axis=1)
    return most * jnp.sqrt(squares.max())
