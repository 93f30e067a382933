"""A gallery in blocks, each split over all devices: resident ones, or many that are streamed.

Every block has the same number of rows, and every device has the same number of a block's rows: its
shard. The last block overlaps the one before it instead of being padded. A shard may have more rows
than images, so that galleries of several sizes have blocks of one shape, which one compiled program
serves. Nothing is copied on the host unless a shard needs padding or another dtype, or spans two
parts of the gallery. A CPU device reads the gallery's own memory, which may be memory-mapped files.
"""

import mmap
from collections.abc import Iterator, Sequence

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from cmap_jax import sharding
from cmap_jax.numerics import round_up
from cmap_jax.retrieval.parts import Leaves, Part, Parts
from cmap_jax.retrieval.scores import Levels

_KEPT = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))
# Vector units take 16 images at once. A remainder is computed by other instructions, which may
# round differently: two equal images would no longer tie.
WHOLE_VECTORS = 32
# A shard of fewer rows is padded to whole vectors, which copies it; larger ones are not copied.
_SMALL = 1024


class Blocks:
    """The blocks of a gallery.

    Attributes:
        used: rows of a shard that hold images; the rows behind them are zero padding.
        shard_rows: rows of a shard, `WHOLE_VECTORS` or more.
        resident: the blocks, where they stay on the devices; empty where they are streamed.
    """

    def __init__(
        self,
        gallery: Part | Sequence[Part],
        mesh: Mesh,
        *,
        dtype: np.typing.DTypeLike | None,
        chunk: int | None,
        device_gb: float,
        room: int,
    ):
        """Cut a gallery into blocks, and place them on the devices if all of them fit.

        The arguments are those of `ExactIndex`.
        """
        self._parts = Parts(gallery)
        self._mesh = mesh
        self._dtype = np.dtype(dtype or self._parts.dtype)
        if self._dtype not in (*_KEPT, self._parts.dtype):
            raise ValueError(
                "the devices keep a gallery as float32 or bfloat16, or as int8 where it is "
                f"stored so; not as {self._dtype}"
            )
        levels, total, width = self._parts.shape
        shard_rows = max(-(-max(total, room) // mesh.size), 1)
        most = int(device_gb * 1e9 / max(levels * width * self._dtype.itemsize, 1))
        is_resident = shard_rows <= most
        if not is_resident:  # two blocks are on the devices at a time
            shard_rows = even_part(shard_rows, max(most // 2, 1))
        elif len(self._parts.rows) > 1 and mesh.devices.flat[0].platform == "cpu":
            # Such a block lies within a part, and is not copied.
            shard_rows = min(shard_rows, -(-max(self._parts.rows) // mesh.size))
        least = round_up(even_part(shard_rows, chunk or _SMALL), WHOLE_VECTORS)
        self.shard_rows = max(shard_rows, least)
        # A small gallery is spread over all devices, though the first one has room for all of it.
        self.used = min(self.shard_rows, max(-(-total // mesh.size), 1))
        block_images = self.used * mesh.size
        self._starts = [
            (max(min(seen, total - block_images), 0), seen)
            for seen in range(0, max(total, 1), block_images)
        ]
        self.resident: list[Levels] = []
        if is_resident or len(self._starts) == 1:
            self.resident = [self._put(first) for first, _ in self._starts]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the gallery, (L, N, D)."""
        return self._parts.shape

    @property
    def count(self) -> int:
        """The number of blocks."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[Levels, int, int]]:
        """Yield each block's levels, [R, D] each, and two positions.

        The first position is that of the block's first row. Images before the second one were in
        earlier blocks. Rows behind the gallery's end are zero.
        """
        for number, (first, seen) in enumerate(self._starts):
            yield self.resident[number] if self.resident else self._put(first), first, seen
            self._forget_pages()

    def spread(self, mask: np.ndarray) -> Iterator[jax.Array]:
        """Yield a mask of images [N] for each block, its rows on the devices that have theirs."""
        for first, _ in self._starts:
            yield self._place(
                lambda begin, end: (mask[begin:end],), first, self.shard_rows, self.used
            )[0]

    def gather(self, positions: np.ndarray, rows: int) -> tuple[Levels, int]:
        """Return some images, and how many rows of each device hold them.

        Args:
            positions: [M] int, ascending, at most ``rows`` times the number of devices.
            rows: rows a device, those without an image zero.
        """
        used = -(-len(positions) // self._mesh.size)

        def read(level: int, begin: int, end: int) -> Leaves:
            return self._parts.take(level, positions[begin:end], self._dtype)

        return self._levels(read, 0, rows, used), used

    def _put(self, first: int) -> Levels:
        """Put a block on the devices."""

        def read(level: int, begin: int, end: int) -> Leaves:
            return self._parts.read(level, begin, end, self._dtype)

        return self._levels(read, first, self.shard_rows, self.used)

    def _levels(self, read, first: int, shard_rows: int, used: int) -> Levels:
        levels = []
        for level in range(self.shape[0]):
            leaves = self._place(
                lambda begin, end, level=level: read(level, begin, end), first, shard_rows, used
            )
            levels.append(leaves[0] if len(leaves) == 1 else leaves)
        return tuple(levels)

    def _place(self, read, first: int, shard_rows: int, used: int) -> tuple[jax.Array, ...]:
        """Put rows from ``first`` on the devices, ``used`` on each, with zeros behind them."""
        rows = shard_rows * self._mesh.size
        split = sharding.split_over_devices(self._mesh)

        def shard(leaf: int, index: tuple[slice, ...]) -> np.ndarray | jax.Array:
            begin = first + index[0].indices(rows)[0] // shard_rows * used
            values = read(begin, begin + used)[leaf]
            missing = shard_rows - len(values)
            if not missing:
                return values
            return np.pad(values, ((0, missing), *((0, 0),) * (values.ndim - 1)))

        return tuple(
            jax.make_array_from_callback(
                (rows, *leaf.shape[1:]), split, lambda index, number=number: shard(number, index)
            )
            for number, leaf in enumerate(read(0, 0))
        )

    def _forget_pages(self) -> None:
        """Release the pages of memory-mapped files from this process's resident memory.

        They stay in the system's cache, and return when they are touched.
        """
        if self.resident:
            return
        for base in self._parts.arrays():
            is_file = False
            while isinstance(base, np.ndarray):
                # Only a read-only map: in others, a private change would be lost.
                is_file = is_file or (isinstance(base, np.memmap) and base.mode == "r")
                base = base.base
            if is_file and isinstance(base, mmap.mmap):
                base.madvise(mmap.MADV_DONTNEED)


def even_part(total: int, most: int) -> int:
    """Return the size of the parts of ``total``, as few and as even as ``most`` a part allows."""
    return -(-total // -(-total // most))
