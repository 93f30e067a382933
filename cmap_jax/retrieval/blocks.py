"""A gallery in blocks, each split over all devices: one that stays resident, or many streamed ones.

Every block has the same number of rows, and every device has the same number of a block's rows: its
shard. The last block overlaps the one before it instead of being padded. A shard may have more rows
than images, so that galleries of several sizes have blocks of one shape, which one compiled program
serves. Nothing is copied on the host unless a shard needs padding or another dtype. A CPU device
reads the gallery's own memory, which may be a memory-mapped file.
"""

import mmap
from collections.abc import Iterator

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from cmap_jax import sharding
from cmap_jax.numerics import round_up

_DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))
# Vector units take 16 images at once. A remainder is computed by other instructions, which may
# round differently: two equal images would no longer tie.
_WHOLE_VECTORS = 32

Levels = tuple[jax.Array, ...]


class Blocks:
    """The blocks of a gallery.

    Attributes:
        chunk: rows that a device scores at once, a multiple of 32; a shard has at least as many.
        used: rows of a shard that hold images; the rows behind them are zero padding.
    """

    def __init__(
        self,
        pyramid: np.ndarray | jax.Array,
        mesh: Mesh,
        *,
        dtype: np.typing.DTypeLike | None,
        chunk: int,
        device_gb: float,
        room: int,
    ):
        """Cut a gallery into blocks, and place it on the devices if it is a single one.

        The arguments are those of `ExactIndex`.
        """
        self._pyramid = np.asarray(pyramid)
        self._mesh = mesh
        self._dtype = np.dtype(dtype or self._pyramid.dtype)
        if self._pyramid.ndim != 3 or not {self._pyramid.dtype, self._dtype} <= set(_DTYPES):
            raise ValueError(
                "the gallery must be [L, N, D] and float32 or bfloat16, not "
                f"{self._pyramid.shape} and {self._pyramid.dtype}, kept as {self._dtype}"
            )
        levels, total, width = self._pyramid.shape
        shard_rows = max(-(-max(total, room) // mesh.size), 1)
        most = int(device_gb * 1e9 / max(levels * width * self._dtype.itemsize, 1))
        if shard_rows > most:  # two blocks are on the devices at a time
            shard_rows = _even_part(shard_rows, max(most // 2, 1))
        self.chunk = round_up(_even_part(shard_rows, chunk), _WHOLE_VECTORS)
        self._shard_rows = max(shard_rows, self.chunk)
        # A small gallery is spread over all devices, though the first one has room for all of it.
        self.used = min(self._shard_rows, max(-(-total // mesh.size), 1))
        block_images = self.used * mesh.size
        self._starts = [
            (max(min(seen, total - block_images), 0), seen)
            for seen in range(0, max(total, 1), block_images)
        ]
        self.resident: Levels = ()
        if len(self._starts) == 1:
            self.resident = self._put(self._pyramid, 0, self._shard_rows, self.used)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._pyramid.shape[1]

    def __iter__(self) -> Iterator[tuple[Levels, int, int]]:
        """Yield each block's levels, [R, D] each, and two positions.

        The first position is that of the block's first row. Images before the second one were in
        earlier blocks. Rows behind the gallery's end are zero.
        """
        for first, seen in self._starts:
            levels = self.resident or self._put(self._pyramid, first, self._shard_rows, self.used)
            yield levels, first, seen
            self._forget_pages()

    def gather(self, positions: np.ndarray) -> tuple[Levels, int]:
        """Return some images, ``chunk`` rows a device, and how many of these rows hold images.

        Args:
            positions: [M] int, at most ``chunk`` times the number of devices.
        """
        used = -(-len(positions) // self._mesh.size)
        return self._put(self._pyramid[:, positions], 0, self.chunk, used), used

    def _put(self, pyramid: np.ndarray, first: int, shard_rows: int, used: int) -> Levels:
        """Put images from ``first`` on the devices, ``used`` on each, with zeros behind them."""
        rows = shard_rows * self._mesh.size
        split = sharding.split_over_devices(self._mesh)

        def put(level: np.ndarray) -> jax.Array:
            def shard(index: tuple[slice, ...]) -> np.ndarray:
                begin = first + index[0].indices(rows)[0] // shard_rows * used
                values = level[begin : begin + used].astype(self._dtype, copy=False)
                missing = shard_rows - len(values)
                return np.pad(values, ((0, missing), (0, 0))) if missing else values

            return jax.make_array_from_callback((rows, level.shape[1]), split, shard)

        return tuple(put(level) for level in pyramid)

    def _forget_pages(self) -> None:
        """Release the pages of a memory-mapped file from this process's resident memory.

        They stay in the system's cache, and return when they are touched.
        """
        base, is_file = self._pyramid, False
        while isinstance(base, np.ndarray):
            # Only a read-only map: in others, a private change would be lost.
            is_file = is_file or (isinstance(base, np.memmap) and base.mode == "r")
            base = base.base
        if is_file and isinstance(base, mmap.mmap) and not self.resident:
            base.madvise(mmap.MADV_DONTNEED)


def _even_part(total: int, most: int) -> int:
    """Return the size of the parts of ``total``, as few and as even as ``most`` a part allows."""
    return -(-total // -(-total // most))
