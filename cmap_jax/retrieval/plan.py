"""How a search is computed: how many rows at once, and in which form, by device and batch."""

import dataclasses

from cmap_jax.numerics import round_up
from cmap_jax.retrieval.blocks import WHOLE_VECTORS, even_part

CPU = "cpu"

# Most queries that read the gallery in fused passes.
_MOST_FUSED = 8
# Least queries for which two passes, in bfloat16 and over what it leaves, are faster than one.
_LEAST_FAST = 64
# Rows that are scored at once in a fused pass. Where a sample of as many rows is scored too they
# are fewer, and on CPU few enough for the caches of a core. Without a sample a CPU scores all rows
# of a shard at once: XLA runs the body of a loop on one thread, and other operations on all.
_FUSED_TILE = {CPU: 1024}
_FUSED_TILE_ELSEWHERE = 2**20
_FUSED_TILE_WITH_SAMPLE = 2**15
# Scores that are kept at once, and rows that are multiplied at once.
_SCORES = {CPU: 2**20}
_SCORES_ELSEWHERE = 2**26
_TILE = {CPU: 1024}
_TILE_ELSEWHERE = 2**16
_ALIGNED = 128


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static arguments of a search's programs.

    Attributes:
        platform: the devices' platform, such as "cpu" or "gpu".
        tile: rows that a device scores at once; a multiple of 32, or all.
        chunk: rows whose scores it keeps and lists at once, ``tile`` or more. A fast pass scores
            so many at once, and float32 a tile of what that leaves.
        is_fused: whether rows are read once for all products, or multiplied as matrices.
        is_fast: whether a pass in bfloat16 shortens the list of images that float32 scores.
        is_sampled: whether the program also scores a sample, and is called for that alone.
    """

    platform: str
    tile: int
    chunk: int
    is_fused: bool = False
    is_fast: bool = False
    is_sampled: bool = True


def make_plan(
    platform: str,
    queries: int,
    shard_rows: int,
    *,
    chunk: int | None = None,
    fast: bool | None = None,
    sampled: bool = True,
) -> Plan:
    """Return the plan of a search.

    Args:
        platform: the devices' platform.
        queries: number of queries, padding included.
        shard_rows: rows of a device's shard of a block, `WHOLE_VECTORS` or more.
        chunk: images that a device scores at once; None: by device and number of queries.
        fast: whether there is a pass in bfloat16; None: where it is faster.
        sampled: whether the program also scores a sample, as `Plan.is_sampled`.
    """
    is_fused = queries <= _MOST_FUSED and not fast
    if fast is None:
        fast = platform != CPU and queries >= _LEAST_FAST
    if chunk is not None:
        tile = _aligned(shard_rows, chunk, WHOLE_VECTORS)
        return Plan(platform, tile, tile, is_fused=is_fused, is_fast=fast, is_sampled=sampled)
    kept = _SCORES.get(platform, _SCORES_ELSEWHERE) // max(queries, 1)
    if is_fused and platform == CPU and not sampled:
        return Plan(platform, shard_rows, shard_rows, is_fused, is_sampled=False)
    if is_fused:
        listed = even_part(shard_rows, max(kept, WHOLE_VECTORS))
        elsewhere = _FUSED_TILE_WITH_SAMPLE if sampled else _FUSED_TILE_ELSEWHERE
        tile = _FUSED_TILE.get(platform, elsewhere)
        tile = _aligned(listed, tile, WHOLE_VECTORS)
        return Plan(platform, tile, max(listed, tile), is_fused, is_sampled=sampled)
    most = max(min(kept, _TILE.get(platform, _TILE_ELSEWHERE)), _ALIGNED)
    step = WHOLE_VECTORS if platform == CPU or shard_rows < 8 * _ALIGNED else _ALIGNED
    listed = _aligned(shard_rows, most, step)
    tile = min(_aligned(shard_rows, max(most // 4, _ALIGNED), step), listed) if fast else listed
    return Plan(platform, tile, listed, is_fused=is_fused, is_fast=fast, is_sampled=sampled)


def _aligned(rows: int, most: int, step: int) -> int:
    """Return the size of even parts of some rows, a multiple of ``step`` and not above ``rows``."""
    size = round_up(even_part(rows, most), step)
    if size > rows:
        size = round_up(even_part(rows, max(rows - step, 1)), step)
    return size
