"""A pass over the gallery in bfloat16 that leaves few images for float32.

Many queries are bound by the products of their vectors with the images'. Accelerators multiply
bfloat16 so much faster than float32 that three products of bfloat16 pieces, near the score, and
the float32 score of the images that they cannot decide take half the time. How far such a product
may be from the float32 score is proven (docs/method.md, section 11), so that what results is the
float32 result: positions, ranks and ties.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.retrieval import scores
from cmap_jax.retrieval.carry import Carry, Images, Terms, update
from cmap_jax.retrieval.margin import LEAST_SQUARE, margins
from cmap_jax.retrieval.plan import Plan
from cmap_jax.retrieval.scores import Levels
from cmap_jax.retrieval.shard import SPLIT, WHOLE, Bounds, Chosen, Shard

# Lists are so much longer than the search's, for images that the pass cannot tell apart.
_LONGER = 2


def length_of(length: int) -> int:
    """Return the length of a fast pass's lists where the search's have a length."""
    return _LONGER * length


def capacity_of(rows: int) -> int:
    """Return how many of a shard's rows may be left; with more, all are scored in float32."""
    return -(-rows // 4)


@functools.partial(jax.jit, static_argnames=("mesh", "plan"))
def choose(
    levels: Levels,
    query: scoring.ComposedQuery,
    terms: Terms | None,
    carry: Carry,
    bounds: Bounds,
    allowed: jax.Array,
    largest: jax.Array,
    *,
    mesh: Mesh,
    plan: Plan,
) -> tuple[jax.Array, jax.Array, Chosen]:
    """Count the images that are surely above a threshold, and choose those that need float32.

    Args:
        levels: levels of the gallery, [R, D] each, sharded.
        query: B queries, replicated.
        terms: thresholds, as float32 scores, and positions, for each query; None for lists alone.
        carry: an empty carry with longer lists than the search's, as `length_of` says.
        bounds: which rows and queries count.
        allowed: mask of the images that take part, [R] bool, sharded.
        largest: largest norm of an image at each level.
        mesh: the devices that the levels are sharded over.
        plan: rows at once.

    Returns:
        Counts above and at the thresholds, [S, B, T] int32, without the chosen images; and the
        choice.
    """

    def local(levels, query, terms, carry, bounds, allowed, largest):
        carry = jax.tree.map(lambda x: x[0], carry)
        device = jax.lax.axis_index(sharding.BATCH_AXES)
        first = bounds.first + device * bounds.used
        low, high = bounds.limits(first)
        shard = Shard(levels, allowed, first=first, low=low, high=high, plan=plan)
        margin = margins(query, levels, largest)
        is_real = jnp.arange(len(query)) < bounds.queries
        carry, is_open = _scan(
            shard, query, terms, carry=carry, lists=bounds.lists, margin=margin, is_real=is_real
        )
        near, is_full = _near(carry, bounds.k, margin)
        near &= is_real[:, None] & bounds.lists
        row = jnp.where(near, carry.positions - shard.first, shard.rows)
        is_chosen = is_open.at[row].set(True, mode="drop")
        capacity = capacity_of(shard.rows)
        chosen = jnp.nonzero(is_chosen, size=capacity, fill_value=shard.rows - 1)[0]
        number = is_chosen.sum(dtype=jnp.int32)
        is_all = (is_full & is_real).any() & bounds.lists
        is_all |= number > capacity
        choice = Chosen(chosen.astype(jnp.int32), is_open[chosen], number, is_all)
        counts = (jnp.where(is_all, 0, x) for x in (carry.higher, carry.tied))
        return jax.tree.map(lambda x: x[None], (*counts, choice))

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(SPLIT, WHOLE, WHOLE, SPLIT, WHOLE, SPLIT, WHOLE),
        out_specs=SPLIT,
    )
    return split(levels, query, terms, carry, bounds, allowed, largest)


def _scan(
    shard: Shard,
    query: scoring.ComposedQuery,
    terms: Terms | None,
    carry: Carry,
    lists: jax.Array,
    margin: jax.Array,
    is_real: jax.Array,
) -> tuple[Carry, jax.Array]:
    """Scan a shard in bfloat16.

    Returns:
        The carry, and a mask of the rows that a threshold may be above or below, [R] bool. These
        are not counted.
    """
    size = shard.plan.chunk
    pieces = scores.split_query(query, len(shard.levels), 2)

    def step(number: jax.Array, state: tuple[Carry, jax.Array]) -> tuple[Carry, jax.Array]:
        carry, is_open = state
        begin, is_new = shard.chunk(number)

        def score() -> jax.Array:
            rows = scores.rows_at(shard.levels, begin, size)
            return scores.split_score(pieces, rows, LEAST_SQUARE)

        chunk_scores = shard.score(is_new, score, len(query))
        is_unsure = is_new & _is_unsure(chunk_scores, terms, margin, is_real)
        images = Images(shard.first + begin + jnp.arange(size), is_new, is_new & ~is_unsure)
        carry = update(carry, chunk_scores, images, terms, lists)
        before = jax.lax.dynamic_slice_in_dim(is_open, begin, size)
        is_open = jax.lax.dynamic_update_slice_in_dim(is_open, before | is_unsure, begin, axis=0)
        return carry, is_open

    is_open = jax.lax.pcast(jnp.zeros(shard.rows, bool), sharding.BATCH_AXES, to="varying")
    return shard.scan(step, (carry, is_open))


def _is_unsure(
    chunk_scores: jax.Array, terms: Terms | None, margin: jax.Array, is_real: jax.Array
) -> jax.Array:
    """Return which images may be on either side of a threshold of any query, [C] bool.

    An image that has no margin is among them, even if there is no threshold.
    """
    if terms is None:
        return (jnp.isnan(chunk_scores) & is_real[:, None]).any(axis=0)

    def against(threshold: jax.Array) -> jax.Array:
        # Without a margin the score is NaN.
        is_sure = jnp.abs(chunk_scores - threshold[:, None]) > margin[:, None]
        return (~is_sure & is_real[:, None]).any(axis=0)

    return jax.lax.map(against, terms.thresholds.T).any(axis=0)


def _near(carry: Carry, k: jax.Array, margin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which listed images may be among the k best, and whether unlisted ones may be.

    At least k images score the k-th best fast score less the margin, or more. One of the k best
    must score as much, and so its fast score is at most another margin below.

    Returns:
        Masks [B, length of the lists] and [B] bool.
    """
    everywhere = jax.lax.all_gather(carry.scores, sharding.BATCH_AXES, axis=1, tiled=True)
    best, _ = jax.lax.top_k(everywhere, carry.scores.shape[1])
    kth = jax.lax.dynamic_index_in_dim(best, jnp.maximum(k - 1, 0), axis=1)  # [B, 1]
    # An infinite score and an infinite margin have no difference; without a margin all are near.
    near = (carry.scores >= kth - 2 * margin[:, None]) | jnp.isinf(margin)[:, None]
    return near, near[:, -1]
