"""Scores of some rows of a gallery, in the form that suits the device and the number of queries.

A few queries are bound by the memory: numerators and norms come from one read of each row. Many are
bound by the products, which are matrix products. Where a device multiplies bfloat16 much faster
than float32, a float32 number is split into bfloat16 pieces (docs/method.md, section 11).
"""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32

from cmap_jax import scoring
from cmap_jax.numerics import at_least_float32, inverse_norm

Level = jax.Array | tuple[jax.Array, jax.Array]  # embeddings, or int8 codes and a scale a row
Levels = tuple[Level, ...]

# Pairs of pieces, of a query's vector and of an image's, whose products are summed. The small ones
# come first: what is added to a small sum is rounded less.
_THREE = ((1, 0), (0, 1), (0, 0))
_WITH_EXACT_IMAGES = ((2, 0), (1, 0), (0, 0))
_WITH_EXACT_SQUARES = ((2, 0), (1, 1), (0, 1), (1, 0), (0, 0))
# Most sums that a CPU makes in one pass, because it has 32 vector registers to keep them in.
# Elsewhere each level of a query is a pass of its own.
_MOST_SUMS = 24


def split(x: Float32[Array, "*shape"], pieces: int) -> list[BFloat16[Array, "*shape"]]:
    """Return bfloat16 numbers that add up to ``x``, the larger first.

    What ``pieces`` of them leave is below 2^(-8 pieces) of ``x`` (docs/method.md, section 11).
    """
    parts = []
    for _ in range(pieces):
        # A conversion to bfloat16 and back would be left out by the compiler.
        rounded = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
        parts.append(rounded.astype(jnp.bfloat16))
        x = x - rounded
    return parts


def values(level: Level) -> Float[Array, "N D"]:
    """Return embeddings as floating point numbers."""
    if isinstance(level, tuple):
        codes, scales = level
        return codes.astype(jnp.float32) * scales[:, None]
    return level


def rows_at(levels: Levels, begin: jax.Array, size: int) -> Levels:
    """Return ``size`` adjacent rows of each level."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, size), levels)


def rows_of(levels: Levels, rows: jax.Array) -> Levels:
    """Return some rows of each level; a row that does not exist is the last one."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), levels)


def fused_score(
    query: scoring.ComposedQuery, levels: Levels, platform: str
) -> Float32[Array, "B N"]:
    """Score a few queries, with one read of each row from the memory for many of its products.

    Args:
        query: B queries.
        levels: L levels of N rows.
        platform: the devices' platform, such as "cpu".
    """
    pairs = [(number, level) for number in range(len(query)) for level in range(len(levels))]
    each = 1
    if platform == "cpu":
        each = max(_MOST_SUMS // (2 * len(query.branches)), 1)
    totals = [0.0] * len(query)
    for start in range(0, len(pairs), each):
        group = pairs[start : start + each]
        vectors = [_vectors(query, level, number) for number, level in group]
        rows = [at_least_float32(values(levels[level])) for _, level in group]
        sums = iter(_sums([(r, *v) for r, v in zip(rows, vectors, strict=True)]))
        for (number, _), (numerators, _) in zip(group, vectors, strict=True):
            dots = [next(sums) for _ in numerators]
            for branch, dot in zip(query.branches, dots, strict=True):
                totals[number] += dot if branch.weight is None else dot * inverse_norm(next(sums))
    return jnp.stack(totals)


def _vectors(
    query: scoring.ComposedQuery, level: int, number: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the numerators and the squared weights of one query at a level, [D] each."""

    def at_level(x: jax.Array) -> jax.Array:
        return at_least_float32(x[level if x.shape[0] > 1 else 0, number])

    numerators = [at_level(branch.numerator) for branch in query.branches]
    weights = [at_level(b.weight) for b in query.branches if b.weight is not None]
    return numerators, [jnp.square(w) for w in weights]


def _sums(
    group: Sequence[tuple[jax.Array, Sequence[jax.Array], Sequence[jax.Array]]],
) -> list[jax.Array]:
    """Return the products of rows, [N, D], and of their squares, with vectors: [N] each.

    All are one reduction, because several would each read the rows.

    Args:
        group: rows, numerators for them, and squared weights for their squares; as often as needed.
    """
    terms = []
    for rows, numerators, weights in group:
        squares = jnp.square(rows)
        terms += [*(rows * n for n in numerators), *(squares * w for w in weights)]
    zeros = (jnp.float32(0),) * len(terms)
    add = lambda x, y: tuple(a + b for a, b in zip(x, y, strict=True))  # noqa: E731
    return list(jax.lax.reduce(tuple(terms), zeros, add, (1,)))


@flax.struct.dataclass
class SplitQuery:
    """Queries whose vectors are split into bfloat16 pieces.

    Attributes:
        numerators: [B, D] numerators of each level and branch, in pieces.
        weights: [B, D] squared weights of each level and branch, in pieces; None without one.
    """

    numerators: tuple[tuple[tuple[jax.Array, ...], ...], ...]
    weights: tuple[tuple[tuple[jax.Array, ...] | None, ...], ...]


def split_query(query: scoring.ComposedQuery, levels: int, pieces: int) -> SplitQuery:
    """Split the numerators and the squared weights of queries that score ``levels`` levels."""

    def cut(x: jax.Array | None, level: int) -> tuple[jax.Array, ...] | None:
        if x is None:
            return None
        return tuple(split(at_least_float32(x[level if x.shape[0] > 1 else 0]), pieces))

    weights = [b.weight for b in query.branches]
    squared = [None if w is None else jnp.square(at_least_float32(w)) for w in weights]
    return SplitQuery(
        tuple(tuple(cut(b.numerator, i) for b in query.branches) for i in range(levels)),
        tuple(tuple(cut(w, i) for w in squared) for i in range(levels)),
    )


def split_score(
    query: SplitQuery, levels: Levels, least: float | None = None
) -> Float32[Array, "B N"]:
    """Score by products of bfloat16 pieces, accumulated in float32.

    With queries in two pieces the result is near the score (docs/method.md, section 11), and with
    those in three and a bfloat16 gallery as good as float32 products.

    Args:
        query: B queries.
        levels: L levels of N rows.
        least: squared norm of a weighted image up to which a score is NaN, because nothing is known
            of its error; None: there is no such norm.
    """
    total = 0.0
    for level, numerators, weights in zip(levels, query.numerators, query.weights, strict=True):
        rows = values(level)
        dots = _split_products(numerators, _pieces_of(rows))
        weighted = [w for w in weights if w is not None]
        squares = iter(())
        if weighted:
            squared = jnp.square(at_least_float32(rows))
            squares = iter(_split_products(weighted, split(squared, 2)))
        for dot, weight in zip(dots, weights, strict=True):
            if weight is None:
                total += dot
                continue
            square = next(squares)
            term = dot * inverse_norm(square)
            total += term if least is None else jnp.where(square > least, term, jnp.nan)
    return total


def _pieces_of(rows: jax.Array) -> list[jax.Array]:
    """Return embeddings in bfloat16 pieces: bfloat16 is one already."""
    return [rows] if rows.dtype == jnp.bfloat16 else split(rows, 2)


def _split_products(
    vectors: Sequence[tuple[jax.Array, ...]], images: Sequence[jax.Array]
) -> jax.Array:
    """Return all products of K sets of vectors, [B, D] each in pieces, with [N, D]: [K, B, N].

    The pieces lie side by side, so that one product adds up all pairs: several would each write
    their result, which takes as long as to compute it.
    """
    pairs = _THREE
    if len(vectors[0]) == 3:
        pairs = _WITH_EXACT_IMAGES if len(images) == 1 else _WITH_EXACT_SQUARES
    pairs = [pair for pair in pairs if pair[1] < len(images)]
    left = jnp.stack([jnp.concatenate([v[i] for i, _ in pairs], axis=1) for v in vectors])
    right = jnp.concatenate([images[j] for _, j in pairs], axis=1)
    return jnp.einsum("kbd,nd->kbn", left, right, preferred_element_type=jnp.float32)
