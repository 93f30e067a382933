"""What the devices do in a search: each scans its share of a block, a chunk at a time.

A chunk is scored and forgotten; what is carried on is small: the best images so far, and the
numbers of images above the correct ones and level with them. Every shard of the gallery has a carry
of its own, which goes from block to block; `merge` joins them.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cmap_jax import scoring, sharding

# The score of an excluded image: below all others, and above -inf, which is no image at all.
LOWEST = float(jnp.finfo(jnp.float32).min)

_SPLIT = PartitionSpec(sharding.BATCH_AXES)
_WHOLE = PartitionSpec()

Levels = tuple[jax.Array, ...]


@flax.struct.dataclass
class Carry:
    """What S shards have found so far for B queries.

    Attributes:
        scores: the best k, [S, B, k] float32, best first; -inf where there are fewer images yet.
        positions: their positions in the gallery, [S, B, k] int32; of equal scores the lower first.
        higher: images that score above each threshold, [S, B, T] int32.
        tied: images that score exactly a threshold, [S, B, T] int32.
        broken: whether a score was NaN, [S, B].
    """

    scores: jax.Array
    positions: jax.Array
    higher: jax.Array
    tied: jax.Array
    broken: jax.Array


@flax.struct.dataclass
class Terms:
    """What a search asks of each query.

    Attributes:
        thresholds: scores to count against, [B, T] float32: the best correct image's, or every
            correct one's.
        uncounted: positions that are not counted: the correct and the excluded ones, [B, U] int32,
            each once and padded with -1.
        excluded: positions that come last, [B, E] int32, padded with -1.
    """

    thresholds: jax.Array
    uncounted: jax.Array
    excluded: jax.Array


@functools.partial(jax.jit, static_argnames=("mesh", "queries", "thresholds", "k"))
def start(*, mesh: Mesh, queries: int, thresholds: int, k: int) -> Carry:
    """Return the carry of a search that has seen nothing."""
    shards = mesh.size
    carry = Carry(
        jnp.full((shards, queries, k), -jnp.inf),
        jnp.zeros((shards, queries, k), jnp.int32),
        jnp.zeros((shards, queries, thresholds), jnp.int32),
        jnp.zeros((shards, queries, thresholds), jnp.int32),
        jnp.zeros((shards, queries), bool),
    )
    return jax.lax.with_sharding_constraint(carry, sharding.split_over_devices(mesh))


@functools.partial(jax.jit, static_argnames=("mesh", "size"))
def scan(
    levels: Levels,
    query: scoring.ComposedQuery,
    terms: Terms,
    carry: Carry,
    first: jax.Array,
    seen: jax.Array,
    total: jax.Array,
    *,
    mesh: Mesh,
    size: int,
) -> Carry:
    """Score a block of the gallery and bring the carry up to date.

    Args:
        levels: the block, [R, D] each, split over the devices.
        query: B queries, whole on every device.
        terms: what is asked.
        carry: of the blocks before.
        first: the position of the block's first row.
        seen: positions below belong to the blocks before, though their rows may be here too.
        total: positions from here on are padding.
        mesh: the devices.
        size: rows scored at once; a device has at least as many.
    """

    def local(levels: Levels, query, terms: Terms, carry: Carry, first, seen, total) -> Carry:
        rows = levels[0].shape[0]
        first = first + jax.lax.axis_index(sharding.BATCH_AXES) * rows

        def step(carry: Carry, number: jax.Array) -> tuple[Carry, None]:
            # The last chunk overlaps the one before: all have one size, and nothing is padded.
            begin = jnp.minimum(number * size, rows - size)
            row = begin + jnp.arange(size)
            position = first + row
            is_new = (row >= number * size) & (position >= seen) & (position < total)
            scores = _score_chunk(levels, query, begin, size, is_new.any())
            return _update(carry, scores, is_new, terms, first + begin), None

        carry = jax.tree.map(lambda x: x[0], carry)
        carry, _ = jax.lax.scan(step, carry, jnp.arange(-(-rows // size)))
        return jax.tree.map(lambda x: x[None], carry)

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_SPLIT, _WHOLE, _WHOLE, _SPLIT, _WHOLE, _WHOLE, _WHOLE),
        out_specs=_SPLIT,
    )
    return split(levels, query, terms, carry, first, seen, total)


@functools.partial(jax.jit, static_argnames="mesh")
def merge(carry: Carry, *, mesh: Mesh) -> tuple[jax.Array, ...]:
    """Join the shards; the results are replicated.

    Returns:
        Scores [B, k], -inf where excluded, and positions [B, k] of the best images, best first and
        of equal scores the lower position first; images above and images at each threshold, [B, T]
        each; whether a score was NaN [B].
    """
    _, queries, k = carry.scores.shape
    scores, positions = (
        x.swapaxes(0, 1).reshape(queries, -1) for x in (carry.scores, carry.positions)
    )
    scores, positions = jax.lax.sort((-scores, positions), num_keys=2)
    scores = -scores[:, :k]
    found = (
        jnp.where(scores > LOWEST, scores, -jnp.inf),
        positions[:, :k],
        carry.higher.sum(axis=0),
        carry.tied.sum(axis=0),
        carry.broken.any(axis=0),
    )
    return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))


@functools.partial(jax.jit, static_argnames=("mesh", "size"))
def pick(
    levels: Levels, query: scoring.ComposedQuery, rows: jax.Array, *, mesh: Mesh, size: int
) -> jax.Array:
    """Return the scores of some rows, a few for each query, as `scan` computes them.

    Args:
        levels: a block, [R, D] each, split over the devices; each has a multiple of ``size``.
        query: B queries.
        rows: which rows of the block, [B, M], -1 for none.
        mesh: the devices.
        size: rows scored at once.

    Returns:
        [B, M] float32, -inf for none; whole on every device.
    """

    def local(levels: Levels, query, rows: jax.Array, picked: jax.Array) -> jax.Array:
        count = levels[0].shape[0]
        first = jax.lax.axis_index(sharding.BATCH_AXES) * count

        def step(picked: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
            column, is_here = _columns(rows, first + number * size, size)
            scores = _score_chunk(levels, query, number * size, size, is_here.any())
            here = jnp.take_along_axis(scores, column, axis=1)
            return picked + jnp.where(is_here, here, 0.0), None

        picked, _ = jax.lax.scan(step, picked[0], jnp.arange(count // size))
        return picked[None]

    split = jax.shard_map(
        local, mesh=mesh, in_specs=(_SPLIT, _WHOLE, _WHOLE, _SPLIT), out_specs=_SPLIT
    )
    # A sum of one score and zeros: a maximum over devices may lose a NaN.
    picked = split(levels, query, rows, jnp.zeros((mesh.size, *rows.shape))).sum(axis=0)
    picked = jnp.where(rows >= 0, picked, -jnp.inf)
    return jax.lax.with_sharding_constraint(picked, sharding.replicated(mesh))


def _score_chunk(
    levels: Levels, query: scoring.ComposedQuery, begin: jax.Array, size: int, is_needed: jax.Array
) -> jax.Array:
    """Score ``size`` rows of a block, [B, size]; anything where they are not needed."""

    def score() -> jax.Array:
        chunk = [jax.lax.dynamic_slice_in_dim(level, begin, size) for level in levels]
        return scoring.score(query, jnp.stack(chunk))

    def nothing() -> jax.Array:
        zeros = jnp.zeros((len(query), size))
        return jax.lax.pcast(zeros, sharding.BATCH_AXES, to="varying")

    # A fence too: without, the compiler mixes the score with all that is done with it, and computes
    # it once for each use. `scan` and `pick` could then round it in different ways, and a correct
    # image would not tie with itself and its duplicates.
    return jax.lax.cond(is_needed, score, nothing)


def _columns(places: jax.Array, begin: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return positions as columns of a chunk that starts at ``begin``, and whether it has them."""
    column = places - begin
    is_here = (places >= 0) & (column >= 0) & (column < size)
    return jnp.where(is_here, column, 0), is_here


def _update(
    carry: Carry, scores: jax.Array, is_new: jax.Array, terms: Terms, begin: jax.Array
) -> Carry:
    """Return the carry after another chunk.

    Args:
        carry: one shard's, without the first axis.
        scores: of the chunk, [B, C].
        is_new: which of its images count, [C].
        terms: what is asked.
        begin: the position of the chunk's first image.
    """
    higher, tied, broken = _count(scores, is_new, terms.thresholds)
    column, is_here = _columns(terms.uncounted, begin, scores.shape[1])
    is_here &= is_new[column]
    uncounted = jnp.take_along_axis(scores, column, axis=1)[:, :, None]  # [B, U, 1]
    above, level = (
        jnp.sum(is_here[:, :, None] & which, axis=1, dtype=jnp.int32)
        for which in (
            uncounted > terms.thresholds[:, None, :],
            uncounted == terms.thresholds[:, None, :],
        )
    )
    carry = carry.replace(
        higher=carry.higher + higher - above,
        tied=carry.tied + tied - level,
        broken=carry.broken | broken,
    )
    k = carry.scores.shape[1]
    if not k:
        return carry
    ranked = jnp.where(is_new, jnp.maximum(scores, LOWEST), -jnp.inf)
    # What is carried has lower positions and stands in front: it stays where scores are equal.
    ranked = jnp.concatenate([carry.scores, ranked], axis=1)
    column, is_here = _columns(terms.excluded, begin, scores.shape[1])
    column = jnp.where(is_here & is_new[column], k + column, ranked.shape[1])
    row = jnp.arange(len(scores))[:, None]
    best, index = jax.lax.top_k(ranked.at[row, column].set(LOWEST, mode="drop"), k)
    carried = jnp.take_along_axis(carry.positions, jnp.minimum(index, k - 1), axis=1)
    return carry.replace(scores=best, positions=jnp.where(index < k, carried, begin + index - k))


def _count(
    scores: jax.Array, is_new: jax.Array, thresholds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return how many new images score above and at each threshold, and whether a score is NaN.

    Args:
        scores: [B, C].
        is_new: which images count, [C].
        thresholds: [B, T].

    Returns:
        [B, T], [B, T] and [B].
    """

    def against(threshold: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # All in one pass: beside the product, reading the scores once more is what takes time.
        threshold = threshold[:, None]
        return jax.lax.reduce(
            (
                (is_new & (scores > threshold)).astype(jnp.int32),
                (is_new & (scores == threshold)).astype(jnp.int32),
                is_new & jnp.isnan(scores),
            ),
            (np.int32(0), np.int32(0), np.False_),
            lambda x, y: (x[0] + y[0], x[1] + y[1], x[2] | y[2]),
            (1,),
        )

    higher, tied, broken = jax.lax.map(against, thresholds.T)
    return higher.T, tied.T, broken[0]
