"""The devices' part of a search: each scans its shard of a block, a chunk at a time.

The scores of a chunk are used and dropped. The carry from chunk to chunk is small. Each device has
its own, which goes from block to block; beside it, `scan` returns the results of all devices,
merged. After a pass in bfloat16 (`cmap_jax.retrieval.fast`), only what it has left is scanned.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.retrieval import scores
from cmap_jax.retrieval.carry import LOWEST, Carry, Images, Terms, update
from cmap_jax.retrieval.plan import CPU, Plan
from cmap_jax.retrieval.positions import NO_TARGET
from cmap_jax.retrieval.scores import Levels
from cmap_jax.retrieval.shard import SPLIT, WHOLE, Bounds, Chosen, Shard, nothing, when_needed

_NO_POSITION = np.iinfo(np.int32).max  # behind all images


@flax.struct.dataclass
class Merged:
    """Results of all shards together, replicated; counts and picked scores only with terms.

    Attributes:
        picked: scores of the sample's requested rows, [B, M] float32; 0 for padding.
        scores: the k best scores, [B, k] float32, best first; -inf for an excluded or no image.
        positions: their positions, [B, k] int32; ties go to the lower one; -1 for no image.
        higher: number of images above each threshold, [B, T] int32.
        tied: number of images at each threshold, [B, T] int32.
        broken: whether a score was NaN, [B] bool.
    """

    picked: jax.Array | None
    scores: jax.Array
    positions: jax.Array
    higher: jax.Array | None
    tied: jax.Array | None
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


def scan(
    sample: Levels,
    levels: Levels,
    query: scoring.ComposedQuery,
    terms: Terms | None,
    carry: Carry,
    bounds: Bounds,
    allowed: jax.Array | None = None,
    chosen: Chosen | None = None,
    *,
    mesh: Mesh,
    plan: Plan,
) -> tuple[Carry, Merged]:
    """Score some images of a sample and a block of the gallery, and update the carry.

    `program` compiles it. One program does both, though a call needs only one of the two: compiling
    takes seconds, and what ``bounds`` leaves empty is skipped in no time.

    Args:
        sample: levels of some images, [C, D] each on every device, at most a tile. Empty without
            terms.
        levels: levels of the block, [R, D] each, sharded, at least a chunk on a device. Empty for
            no block.
        query: B queries, replicated.
        terms: thresholds and positions, for each query; None for lists alone.
        carry: results of the earlier blocks.
        bounds: which rows count.
        allowed: mask of the block's images that take part, [R] bool, sharded; None: all of them.
        chosen: the only images to be scanned, where there was a fast pass.
        mesh: the devices that sample and levels are sharded over.
        plan: rows at once, and in which form.

    Returns:
        The updated carry, and the merged results so far.
    """

    def local(
        sample, levels, query, terms, carry, bounds, allowed, chosen
    ) -> tuple[Carry, jax.Array]:
        device = jax.lax.axis_index(sharding.BATCH_AXES)
        picked = None
        if terms is not None:
            picked = _pick(
                sample,
                query,
                terms.rows,
                first=device * bounds.sampled,
                used=bounds.sampled,
                plan=plan,
            )
        carry, chosen = jax.tree.map(lambda x: x[0], (carry, chosen))
        if levels:
            first = bounds.first + device * bounds.used
            low, high = bounds.limits(first)
            shard = Shard(levels, allowed, first=first, low=low, high=high, plan=plan)
            carry = _scan_shard(shard, query, terms, carry=carry, lists=bounds.lists, chosen=chosen)
        return jax.tree.map(lambda x: x[None], (carry, picked))

    split = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(SPLIT, SPLIT, WHOLE, WHOLE, SPLIT, WHOLE, SPLIT, SPLIT),
        out_specs=SPLIT,
    )
    carry, picked = split(sample, levels, query, terms, carry, bounds, allowed, chosen)
    merged = _merge(carry, picked)
    return carry, jax.lax.with_sharding_constraint(merged, sharding.replicated(mesh))


_STATIC = ("mesh", "plan")
_scan = jax.jit(scan, static_argnames=_STATIC)
# XLA vectorises sums along rows on a CPU only if it may add up their terms in any order. NaN and
# infinities stay what they are.
_scan_reordering = jax.jit(
    scan, static_argnames=_STATIC, compiler_options={"xla_cpu_enable_fast_math": True}
)


def program(plan: Plan) -> jax.stages.Wrapped:
    """Return the jitted `scan` for a plan."""
    return _scan_reordering if plan.is_fused and plan.platform == CPU else _scan


def _pick(
    sample: Levels,
    query: scoring.ComposedQuery,
    rows: jax.Array,
    first: jax.Array,
    used: jax.Array,
    plan: Plan,
) -> jax.Array:
    """Return the scores of some rows of a sample, [B, M]; 0 where this device does not have them.

    Args:
        sample: levels of this device's shard, [C, D] each.
        query: B queries.
        rows: rows of the whole sample, [B, M] int32, padded with -1.
        first: number of the shard's first row in the whole sample.
        used: rows of the shard that hold images.
        plan: rows at once.
    """
    size = jax.tree.leaves(sample)[0].shape[0]
    column = rows - first
    is_here = (rows >= 0) & (column >= 0) & (column < used)
    column = jnp.clip(column, 0, size - 1)

    def widen(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, plan.tile - size), *((0, 0),) * (x.ndim - 1)))

    # As many rows as in a tile, so that the same instructions compute the same score.
    tile = jax.tree.map(widen, sample) if size < plan.tile else sample
    tile_scores = when_needed(
        is_here.any(), lambda: _score_tile(query, tile, plan), (len(query), plan.tile)
    )
    return jnp.where(is_here, jnp.take_along_axis(tile_scores, column, axis=1), 0.0)


def _scan_shard(
    shard: Shard,
    query: scoring.ComposedQuery,
    terms: Terms | None,
    carry: Carry,
    lists: jax.Array,
    chosen: Chosen | None,
) -> Carry:
    """Return the carry after this device's shard of a block, or after its chosen rows.

    Args:
        shard: rows of the block that this device holds.
        query: B queries.
        terms: thresholds and positions, for each query.
        carry: this shard's results so far, without the axis of shards.
        lists: whether the best images are listed.
        chosen: rows, without the axis of shards; None: all that count.
    """
    plan = shard.plan

    def all_rows(number: jax.Array, carry: Carry) -> Carry:
        begin, is_new = shard.chunk(number)
        images = Images(shard.first + begin + jnp.arange(plan.chunk), is_new, is_new)
        chunk_scores = shard.score(
            is_new, lambda: _score_rows(shard.levels, query, begin, plan), len(query)
        )
        return update(carry, chunk_scores, images, terms, lists)

    def chosen_rows(number: jax.Array, carry: Carry) -> Carry:
        # The same instructions score all rows where too many are left.
        index = number * plan.tile + jnp.arange(plan.tile)
        listed = jnp.minimum(index, chosen.rows.shape[0] - 1)
        row = jnp.where(chosen.is_all, shard.low + index, chosen.rows[listed])
        is_new = jnp.where(chosen.is_all, row < shard.high, index < chosen.count)
        if shard.allowed is not None:
            is_new &= shard.allowed[jnp.minimum(row, shard.rows - 1)]
        is_counted = is_new & (chosen.is_all | chosen.is_counted[listed])
        position = jnp.where(index < limit, shard.first + row, _NO_POSITION)
        images = Images(position, is_new, is_counted)
        tile_scores = when_needed(
            is_new.any(),
            lambda: _score_tile(query, scores.rows_of(shard.levels, row), plan),
            (len(query), plan.tile),
        )
        return update(carry, tile_scores, images, terms, lists)

    if chosen is None:
        return shard.scan(all_rows, carry)
    limit = jnp.where(chosen.is_all, shard.high - shard.low, chosen.count)
    return jax.lax.fori_loop(0, -(-limit // plan.tile), chosen_rows, carry)


def _score_rows(
    levels: Levels, query: scoring.ComposedQuery, begin: jax.Array, plan: Plan
) -> jax.Array:
    """Score the rows of a chunk, a tile at a time, [B, C]."""
    if plan.tile == plan.chunk:
        return _score_tile(query, scores.rows_at(levels, begin, plan.tile), plan)

    def tile(number: jax.Array, chunk_scores: jax.Array) -> jax.Array:
        # The last tile overlaps the one before.
        offset = jnp.minimum(number * plan.tile, plan.chunk - plan.tile)
        rows = scores.rows_at(levels, begin + offset, plan.tile)
        values = _score_tile(query, rows, plan)
        return jax.lax.dynamic_update_slice_in_dim(chunk_scores, values, offset, axis=1)

    empty = nothing((len(query), plan.chunk))
    return jax.lax.fori_loop(0, -(-plan.chunk // plan.tile), tile, empty)


def _score_tile(query: scoring.ComposedQuery, tile: Levels, plan: Plan) -> jax.Array:
    """Score rows of the gallery in float32, [B, C]."""
    if plan.is_fused:
        return scores.fused_score(query, tile, plan.platform)
    if plan.platform != CPU:
        # Without this the products of a sample and of a block might be compiled to different
        # instructions, which round differently.
        tile = jax.lax.optimization_barrier(tile)
        if jax.tree.leaves(tile)[0].dtype == jnp.bfloat16:
            return scores.split_score(scores.split_query(query, len(tile), 3), tile)
    return scoring.score(query, jnp.stack([scores.values(level) for level in tile]))


def _merge(carry: Carry, picked: jax.Array | None) -> Merged:
    """Merge the shards' results."""
    counts = (None, None, None)
    if picked is not None:
        # One device has the picked score and the others zero. A maximum might lose a NaN.
        counts = (x.sum(axis=0) for x in (picked, carry.higher, carry.tied))
    picked, higher, tied = counts
    shards, queries, k = carry.scores.shape
    best, positions = carry.scores[0], carry.positions[0]
    if shards > 1:
        best, positions = (
            x.swapaxes(0, 1).reshape(queries, -1) for x in (carry.scores, carry.positions)
        )
        best, positions = jax.lax.sort((-best, positions), num_keys=2)
        best, positions = -best[:, :k], positions[:, :k]
    return Merged(
        picked=picked,
        scores=jnp.where(best > LOWEST, best, -jnp.inf),
        positions=jnp.where(best == -jnp.inf, NO_TARGET, positions),
        higher=higher,
        tied=tied,
        broken=carry.broken.any(axis=0),
    )
