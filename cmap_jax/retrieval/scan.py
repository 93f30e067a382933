"""The devices' part of a search: each scans its shard of a block, a chunk at a time.

The scores of a chunk are used and dropped. The carry from chunk to chunk is small: the best images
so far, and how many images score above the correct ones or tie with them. Each device has its own
carry, which goes from block to block; beside it, `scan` returns the results of all devices, merged.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cmap_jax import scoring, sharding

# The score of an excluded image: below all others, and above -inf, which stands for no image.
LOWEST = float(jnp.finfo(jnp.float32).min)

_SPLIT = PartitionSpec(sharding.BATCH_AXES)
_WHOLE = PartitionSpec()

Levels = tuple[jax.Array, ...]


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
class Bounds:
    """Which rows of a block and of a sample count; int32 scalars and a bool.

    Attributes:
        first: position of the block's first row.
        seen: lowest position that counts; lower ones belong to earlier blocks, though the block
            may hold their rows too.
        total: images in the gallery; rows at this position and above are padding.
        used: rows of each device's shard of the block that hold images.
        sampled: rows of each device's shard of the sample that hold images.
        lists: whether the best images are listed, which takes time.
    """

    first: jax.Array
    seen: jax.Array
    total: jax.Array
    used: jax.Array
    sampled: jax.Array
    lists: jax.Array

    @classmethod
    def build(cls, *, lists: bool = False, **numbers: int) -> "Bounds":
        """Return bounds; a number that is not given is 0."""
        names = ("first", "seen", "total", "used", "sampled")
        return cls(*(np.int32(numbers.get(name, 0)) for name in names), np.bool_(lists))


@flax.struct.dataclass
class Merged:
    """Results of all shards together, replicated.

    Attributes:
        picked: scores of the sample's requested rows, [B, M] float32; 0 for padding.
        scores: the k best scores, [B, k] float32, best first; -inf for an excluded or no image.
        positions: their positions, [B, k] int32; ties go to the lower one.
        higher: number of images above each threshold, [B, T] int32.
        tied: number of images at each threshold, [B, T] int32.
        broken: whether a score was NaN, [B] bool.
    """

    picked: jax.Array
    scores: jax.Array
    positions: jax.Array
    higher: jax.Array
    tied: jax.Array
    broken: jax.Array


def start(*, mesh: Mesh, queries: int, thresholds: int, k: int) -> Carry:
    """Return the carry of a search that has seen no image yet."""
    count = np.zeros((mesh.size, queries, thresholds), np.int32)
    carry = Carry(
        scores=np.full((mesh.size, queries, k), -np.inf, np.float32),
        positions=np.zeros((mesh.size, queries, k), np.int32),
        higher=count,
        tied=count,
        broken=np.zeros((mesh.size, queries), bool),
    )
    return jax.tree.map(lambda x: sharding.place_same(x, mesh), carry)


@functools.partial(jax.jit, static_argnames="mesh")
def scan(
    sample: Levels,
    levels: Levels,
    query: scoring.ComposedQuery,
    terms: Terms,
    carry: Carry,
    bounds: Bounds,
    *,
    mesh: Mesh,
) -> tuple[Carry, Merged]:
    """Score some images of a sample and a block of the gallery, and update the carry.

    One program does both, though a call needs only one of the two: compiling takes seconds, and
    what ``bounds`` leaves empty is skipped in no time.

    Args:
        sample: levels of some images, [C, D] each on every device, scored all at once.
        levels: levels of the block, [R, D] each, sharded, at least C rows on a device; C rows are
            scored at once. Empty for no block.
        query: B queries, replicated.
        terms: thresholds and positions, for each query.
        carry: results of the earlier blocks.
        bounds: which rows count.
        mesh: the devices that sample and levels are sharded over.

    Returns:
        The updated carry, and the merged results so far.
    """

    def local(sample, levels, query, terms, carry, bounds) -> tuple[Carry, jax.Array]:
        device = jax.lax.axis_index(sharding.BATCH_AXES)
        picked = _pick(
            sample, query, terms.rows, first=device * bounds.sampled, used=bounds.sampled
        )
        carry = jax.tree.map(lambda x: x[0], carry)
        if levels:
            carry = _scan_shard(
                levels,
                query,
                terms,
                carry=carry,
                bounds=bounds,
                first=bounds.first + device * bounds.used,
                size=sample[0].shape[0],
            )
        return jax.tree.map(lambda x: x[None], (carry, picked))

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_SPLIT, _SPLIT, _WHOLE, _WHOLE, _SPLIT, _WHOLE),
        out_specs=_SPLIT,
    )
    carry, picked = split(sample, levels, query, terms, carry, bounds)
    # One device has the score and the others zero. A maximum over devices might lose a NaN.
    merged = _merge(carry, picked.sum(axis=0))
    return carry, jax.lax.with_sharding_constraint(merged, sharding.replicated(mesh))


def _pick(
    sample: Levels, query: scoring.ComposedQuery, rows: jax.Array, first: jax.Array, used: jax.Array
) -> jax.Array:
    """Return the scores of some rows of a sample, [B, M]; 0 where this device does not have them.

    Args:
        sample: levels of this device's shard, [C, D] each.
        query: B queries.
        rows: rows of the whole sample, [B, M] int32, padded with -1.
        first: number of the shard's first row in the whole sample.
        used: rows of the shard that hold images.
    """
    size = sample[0].shape[0]
    column, is_here = _columns(rows, first, size)
    is_here &= column < used
    scores = _score_chunk(sample, query, begin=jnp.int32(0), size=size, is_needed=is_here.any())
    return jnp.where(is_here, jnp.take_along_axis(scores, column, axis=1), 0.0)


def _scan_shard(
    levels: Levels,
    query: scoring.ComposedQuery,
    terms: Terms,
    carry: Carry,
    bounds: Bounds,
    first: jax.Array,
    size: int,
) -> Carry:
    """Return the carry after this device's shard of a block.

    Args:
        levels: levels of the shard, [R, D] each.
        query: B queries.
        terms: thresholds and positions, for each query.
        carry: this shard's results so far, without the axis of shards.
        bounds: which rows count.
        first: position of the shard's first row.
        size: rows scored at once, at most R.
    """
    rows = levels[0].shape[0]
    low = jnp.clip(bounds.seen - first, 0, bounds.used)
    high = jnp.clip(bounds.total - first, low, bounds.used)

    def step(number: jax.Array, carry: Carry) -> Carry:
        # The last chunk overlaps the one before: all have one size, and nothing is padded.
        wanted = low + number * size
        begin = jnp.minimum(wanted, rows - size)
        row = begin + jnp.arange(size)
        is_new = (row >= wanted) & (row < high)
        scores = _score_chunk(levels, query, begin=begin, size=size, is_needed=is_new.any())
        return _update(carry, scores, is_new, terms=terms, begin=first + begin, lists=bounds.lists)

    return jax.lax.fori_loop(0, -(-(high - low) // size), step, carry)


def _merge(carry: Carry, picked: jax.Array) -> Merged:
    """Merge the shards' results."""
    shards, queries, k = carry.scores.shape
    scores, positions = carry.scores[0], carry.positions[0]
    if shards > 1:
        scores, positions = (
            x.swapaxes(0, 1).reshape(queries, -1) for x in (carry.scores, carry.positions)
        )
        scores, positions = jax.lax.sort((-scores, positions), num_keys=2)
        scores, positions = -scores[:, :k], positions[:, :k]
    return Merged(
        picked=picked,
        scores=jnp.where(scores > LOWEST, scores, -jnp.inf),
        positions=positions,
        higher=carry.higher.sum(axis=0),
        tied=carry.tied.sum(axis=0),
        broken=carry.broken.any(axis=0),
    )


def _score_chunk(
    levels: Levels, query: scoring.ComposedQuery, begin: jax.Array, size: int, is_needed: jax.Array
) -> jax.Array:
    """Score ``size`` rows of a block, [B, size]; zeros where they are not needed."""

    def score() -> jax.Array:
        chunk = [jax.lax.dynamic_slice_in_dim(level, begin, size) for level in levels]
        return scoring.score(query, jnp.stack(chunk))

    def nothing() -> jax.Array:
        zeros = jnp.zeros((len(query), size))
        return jax.lax.pcast(zeros, sharding.BATCH_AXES, to="varying")

    # The branch is also an optimisation barrier. Without it the compiler would fuse the score with
    # each of its uses and compute it once for each; a sample's and a block's scores might then be
    # rounded differently, and a correct image would not tie with itself and its duplicates.
    return jax.lax.cond(is_needed, score, nothing)


def _columns(positions: jax.Array, begin: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Return positions as columns of a chunk that starts at ``begin``, and whether it has them."""
    column = positions - begin
    is_here = (positions >= 0) & (column >= 0) & (column < size)
    return jnp.where(is_here, column, 0), is_here


def _update(
    carry: Carry,
    scores: jax.Array,
    is_new: jax.Array,
    terms: Terms,
    begin: jax.Array,
    lists: jax.Array,
) -> Carry:
    """Return the carry after another chunk.

    Args:
        carry: one shard's results so far, without the axis of shards.
        scores: scores of the chunk's C images, [B, C].
        is_new: mask of the images that count, [C] bool.
        terms: thresholds and positions, for each query.
        begin: position of the chunk's first image.
        lists: whether the best images are listed.
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

    def best_images() -> tuple[jax.Array, jax.Array]:
        return _best(carry, scores, is_new, terms=terms, begin=begin)

    best, positions = jax.lax.cond(lists, best_images, lambda: (carry.scores, carry.positions))
    return carry.replace(scores=best, positions=positions)


def _best(
    carry: Carry, scores: jax.Array, is_new: jax.Array, terms: Terms, begin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the scores and positions of the best images of the carry and a chunk, [B, k] each."""
    k = carry.scores.shape[1]
    # The scores 0 and -0 are equal, but `top_k` would rank them.
    ranked = jnp.where(scores == 0, 0.0, jnp.maximum(scores, LOWEST))
    ranked = jnp.where(is_new, ranked, -jnp.inf)
    # The carried images have lower positions and come first, so that they win ties.
    ranked = jnp.concatenate([carry.scores, ranked], axis=1)
    column, is_here = _columns(terms.excluded, begin, scores.shape[1])
    column = jnp.where(is_here & is_new[column], k + column, ranked.shape[1])
    row = jnp.arange(len(scores))[:, None]
    best, index = jax.lax.top_k(ranked.at[row, column].set(LOWEST, mode="drop"), k)
    carried = jnp.take_along_axis(carry.positions, jnp.minimum(index, k - 1), axis=1)
    return best, jnp.where(index < k, carried, begin + index - k)


def _count(
    scores: jax.Array, is_new: jax.Array, thresholds: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return how many new images score above and at each threshold, and whether a score is NaN.

    Args:
        scores: scores of the chunk's C images, [B, C].
        is_new: mask of the images that count, [C] bool.
        thresholds: scores to count against, [B, T].

    Returns:
        Two counts, [B, T] int32, and a mask of the queries, [B] bool.
    """

    def against(threshold: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # One pass for all three: after the product, reading the scores takes most of the time.
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
