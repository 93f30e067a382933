"""A device's shard of a block, and which of its rows count.

Every program of a search goes through a shard in chunks, by the loop that is here.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from cmap_jax import sharding
from cmap_jax.retrieval.plan import Plan
from cmap_jax.retrieval.scores import Levels

SPLIT = PartitionSpec(sharding.BATCH_AXES)
WHOLE = PartitionSpec()


@flax.struct.dataclass
class Bounds:
    """Which rows of a block and of a sample count.

    Attributes:
        numbers: the numbers that `build` takes, [8] int32 in one array: each array of a call costs
            time.
    """

    numbers: jax.Array

    @classmethod
    def build(
        cls,
        *,
        first: int = 0,
        seen: int = 0,
        total: int = 0,
        used: int = 0,
        sampled: int = 0,
        lists: bool = False,
        k: int = 0,
        queries: int = 0,
    ) -> "Bounds":
        """Return bounds.

        Args:
            first: position of the block's first row.
            seen: lowest position that counts; lower ones belong to earlier blocks, though the block
                may hold their rows too.
            total: images in the gallery; rows at this position and above are padding.
            used: rows of each device's shard of the block that hold images.
            sampled: rows of each device's shard of the sample that hold images.
            lists: whether the best images are listed, which takes time.
            k: number of best images that are asked for, which a fast pass must know.
            queries: number of queries; those behind them are padding, which it must know too.
        """
        return cls(np.array([first, seen, total, used, sampled, lists, k, queries], np.int32))

    @property
    def first(self) -> jax.Array:
        """Return the position of the block's first row."""
        return self.numbers[0]

    @property
    def used(self) -> jax.Array:
        """Return how many rows of a shard hold images."""
        return self.numbers[3]

    @property
    def sampled(self) -> jax.Array:
        """Return how many rows of a device's sample hold images."""
        return self.numbers[4]

    @property
    def lists(self) -> jax.Array:
        """Return whether the best images are listed."""
        return self.numbers[5] > 0

    @property
    def k(self) -> jax.Array:
        """Return the number of best images that are asked for."""
        return self.numbers[6]

    @property
    def queries(self) -> jax.Array:
        """Return the number of queries without padding."""
        return self.numbers[7]

    def limits(self, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the rows from which and up to which a shard with this first position counts."""
        _, seen, total, used = self.numbers[:4]
        low = jnp.clip(seen - first, 0, used)
        return low, jnp.clip(total - first, low, used)


@flax.struct.dataclass
class Chosen:
    """The images that a fast pass has left for float32, for each of S shards.

    Attributes:
        rows: rows of the shard, [S, M] int32, ascending; the first ``count`` of them.
        is_counted: mask of those that the fast pass has not counted, [S, M] bool.
        count: number of rows, [S] int32.
        is_all: whether all rows of the shard are scanned instead, [S] bool.
    """

    rows: jax.Array
    is_counted: jax.Array
    count: jax.Array
    is_all: jax.Array

    @classmethod
    def nothing(cls, mesh: Mesh, capacity: int) -> "Chosen":
        """Return a choice of no image, with room for ``capacity`` a shard."""
        rows = np.zeros((mesh.size, capacity), np.int32)
        count = np.zeros(mesh.size, np.int32)
        choice = cls(rows, rows.astype(bool), count, count.astype(bool))
        return jax.tree.map(lambda x: sharding.place_same(x, mesh), choice)


@flax.struct.dataclass
class Shard:
    """A device's shard of a block.

    Attributes:
        levels: its levels, [R, D] each.
        allowed: mask of the images that take part, [R] bool, or None.
        first: position of its first row.
        low: its first row that counts.
        high: the row behind the last one that counts.
        plan: rows at once; static.
    """

    levels: Levels
    allowed: jax.Array | None
    first: jax.Array
    low: jax.Array
    high: jax.Array
    plan: Plan = flax.struct.field(pytree_node=False)

    @property
    def rows(self) -> int:
        """Return the number of rows, R."""
        return jax.tree.leaves(self.levels)[0].shape[0]

    @property
    def is_one_step(self) -> bool:
        """Return whether there is one chunk, which every call needs.

        A loop and a branch, whose conditions an accelerator's host reads, would take longer than
        they save; and XLA runs the body of a loop on one thread of a CPU.
        """
        return self.plan.chunk == self.rows and not self.plan.is_sampled

    def scan(self, step: Callable[[jax.Array, Any], Any], state: Any) -> Any:
        """Return the state after a step for each chunk that holds rows that count."""
        if self.is_one_step:
            return step(jnp.int32(0), state)
        chunks = -(-(self.high - self.low) // self.plan.chunk)
        return jax.lax.fori_loop(0, chunks, step, state)

    def chunk(self, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the first row of a chunk, and which of its rows take part, [C] bool.

        The last chunk overlaps the one before: all have one size, and nothing is padded.
        """
        size = self.plan.chunk
        wanted = self.low + number * size
        begin = jnp.minimum(wanted, self.rows - size)
        row = begin + jnp.arange(size)
        is_new = (row >= wanted) & (row < self.high)
        if self.allowed is not None:
            is_new &= jax.lax.dynamic_slice_in_dim(self.allowed, begin, size)
        return begin, is_new

    def score(self, is_new: jax.Array, score: Callable[[], jax.Array], queries: int) -> jax.Array:
        """Return a chunk's scores, [B, C]; zeros where they are not needed."""
        if self.is_one_step:
            return jax.lax.optimization_barrier(score())
        return when_needed(is_new.any(), score, (queries, self.plan.chunk))


def when_needed(
    is_needed: jax.Array, score: Callable[[], jax.Array], shape: tuple[int, int]
) -> jax.Array:
    """Return scores, [B, C]; zeros where they are not needed."""
    # The branch is also an optimisation barrier. Without it the compiler would fuse the score with
    # each of its uses and compute it once for each; a sample's and a block's scores might then be
    # rounded differently, and a correct image would not tie with itself and its duplicates.
    return jax.lax.cond(is_needed, score, lambda: nothing(shape))


def nothing(shape: tuple[int, ...]) -> jax.Array:
    """Return zeros, on each device its own."""
    return jax.lax.pcast(jnp.zeros(shape), sharding.BATCH_AXES, to="varying")
