"""The small state that a device carries through its shard: best images so far, and counts.

The scores of some images update it and are dropped.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# The score of an excluded image: below all others, and above -inf, which stands for no image.
LOWEST = float(jnp.finfo(jnp.float32).min)
# Lists are chosen from groups of images whose scores are the highest, where there are so many more
# images than the list is long.
_MANY = 4


@flax.struct.dataclass
class Carry:
    """Results of S shards so far, for B queries.

    Attributes:
        scores: the k best scores, [S, B, k] float32, best first; -inf behind the images so far.
        positions: their positions in the gallery, [S, B, k] int32; ties go to the lower one.
        higher: number of images that score above each threshold, [S, B, T] int32.
        tied: number of images that score exactly a threshold, [S, B, T] int32.
        broken: whether a score was NaN, [S, B] bool.
    """

    scores: jax.Array
    positions: jax.Array
    higher: jax.Array
    tied: jax.Array
    broken: jax.Array


@flax.struct.dataclass
class Terms:
    """The terms of a search, for each query.

    Attributes:
        rows: rows of the sample whose scores are returned, [B, M] int32, padded with -1.
        thresholds: scores to count against, [B, T] float32: that of the best correct image, or of
            every correct one.
        uncounted: positions of the correct and the excluded images, which are not counted,
            [B, U] int32, each once and padded with -1.
        excluded: positions that come last, [B, E] int32, padded with -1.
    """

    rows: jax.Array
    thresholds: jax.Array
    uncounted: jax.Array
    excluded: jax.Array


@flax.struct.dataclass
class Images:
    """C images whose scores are known.

    Attributes:
        positions: their positions in the gallery, [C] int32, ascending.
        is_listed: mask of those that may be listed, [C] bool.
        is_counted: mask of those that are counted, [C] bool.
    """

    positions: jax.Array
    is_listed: jax.Array
    is_counted: jax.Array


def update(
    carry: Carry, scores: jax.Array, images: Images, terms: Terms | None, lists: jax.Array
) -> Carry:
    """Return the carry after some more images.

    Args:
        carry: one shard's results so far, without the axis of shards.
        scores: scores of C images, [B, C].
        images: these images; all of them behind those of the carry, or not listed.
        terms: thresholds and positions, for each query; None for lists alone, which need neither.
        lists: whether the best images are listed, bool.
    """
    if terms is None:
        broken = (jnp.isnan(scores) & images.is_counted).any(axis=1)
        best, positions = _best(carry, scores, images, excluded=None)
        return carry.replace(scores=best, positions=positions, broken=carry.broken | broken)
    higher, tied, broken = _count(scores, images.is_counted, terms.thresholds)
    column, is_here = _columns(terms.uncounted, images)
    is_here &= images.is_counted[column]
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
    best, positions = jax.lax.cond(
        lists,
        lambda: _best(carry, scores, images, terms.excluded),
        lambda: (carry.scores, carry.positions),
    )
    return carry.replace(scores=best, positions=positions)


def _columns(positions: jax.Array, images: Images) -> tuple[jax.Array, jax.Array]:
    """Return positions as columns of the images' scores, and whether they are among them."""
    last = images.positions.shape[0] - 1
    column = jnp.searchsorted(images.positions, positions, method="scan_unrolled")
    column = jnp.minimum(column, last)
    return column, (positions >= 0) & (images.positions[column] == positions)


def _best(
    carry: Carry, scores: jax.Array, images: Images, excluded: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Return the scores and positions of the best images of the carry and others, [B, k] each."""
    k = carry.scores.shape[1]
    # The scores 0 and -0 are equal, but `top_k` would rank them. NaN is refused or scored again.
    known = jnp.where(jnp.isnan(scores), LOWEST, jnp.maximum(scores, LOWEST))
    ranked = jnp.where(scores == 0, 0.0, known)
    ranked = jnp.where(images.is_listed, ranked, -jnp.inf)
    if excluded is not None:
        column, is_here = _columns(excluded, images)
        column = jnp.where(is_here & images.is_listed[column], column, ranked.shape[1])
        row = jnp.arange(len(scores))[:, None]
        ranked = ranked.at[row, column].set(LOWEST, mode="drop")
    ranked, column = _most_promising(ranked, k)
    # The carried images have lower positions and come first, so that they win ties.
    ranked = jnp.concatenate([carry.scores, ranked], axis=1)
    best, index = jax.lax.top_k(ranked, k)
    carried = jnp.take_along_axis(carry.positions, jnp.minimum(index, k - 1), axis=1)
    column = jnp.take_along_axis(column, jnp.maximum(index - k, 0), axis=1)
    return best, jnp.where(index < k, carried, images.positions[column])


def _most_promising(ranked: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Return fewer scores, with the k best of each row among them, and their columns, ascending.

    The k best scores are in the k groups of neighbours whose best scores are the highest: each of
    the other groups has k images above it, or before it at the same score. One list of groups and
    one of their members are much shorter than one of all images.

    Args:
        ranked: scores, [B, C].
        k: length of the list.

    Returns:
        Scores and columns, [B, P] each with P >= k or P = C.
    """
    queries, count = ranked.shape
    size = 1 << (max(count // k, 1).bit_length() // 2)  # near the square root
    groups = -(-count // size)
    if count < _MANY * k or groups <= k:
        return ranked, jnp.broadcast_to(jnp.arange(count), ranked.shape)
    missing = groups * size - count
    padded = jnp.pad(ranked, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    members = padded.reshape(queries, groups, size)
    _, best = jax.lax.top_k(members.max(axis=2), k)
    best = jnp.sort(best, axis=1)
    ranked = jnp.take_along_axis(members, best[:, :, None], axis=1).reshape(queries, -1)
    column = (best[:, :, None] * size + jnp.arange(size)).reshape(queries, -1)
    return ranked, jnp.minimum(column, count - 1)


def _count(
    scores: jax.Array, is_counted: jax.Array, thresholds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return how many images score above and at each threshold, and whether a score is NaN.

    Args:
        scores: scores of C images, [B, C].
        is_counted: mask of the images that count, [C] bool.
        thresholds: scores to count against, [B, T].

    Returns:
        Two counts, [B, T] int32, and a mask of the queries, [B] bool.
    """

    def against(threshold: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # One pass for all three: after the product, reading the scores takes most of the time.
        threshold = threshold[:, None]
        return jax.lax.reduce(
            (
                (is_counted & (scores > threshold)).astype(jnp.int32),
                (is_counted & (scores == threshold)).astype(jnp.int32),
                is_counted & jnp.isnan(scores),
            ),
            (np.int32(0), np.int32(0), np.False_),
            lambda x, y: (x[0] + y[0], x[1] + y[1], x[2] | y[2]),
            (1,),
        )

    higher, tied, broken = jax.lax.map(against, thresholds.T)
    return higher.T, tied.T, broken[0]
