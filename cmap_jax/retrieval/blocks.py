"""A gallery cut into blocks, each split over all devices: one that stays there, or many in passing.

Every block has the same number of rows, and so has every device's share of it; the last block
overlaps the one before instead of being padded. A share may have more rows than the device has
images, so that galleries of several sizes have blocks of one shape, which one compiled program
serves. Nothing is copied on the host unless a share needs padding or another type. A CPU device
works in the gallery's own memory, be it a memory-mapped file.
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
# Vector units take 16 images at once. What is left over takes another way and may be rounded in
# another way: two equal images would no longer tie.
_WHOLE_VECTORS = 32

Levels = tuple[jax.Array, ...]


class Blocks:
    """The blocks of a gallery.

    Attributes:
        chunk: rows that a device scores at once, a multiple of 32; its share has at least as many.
        used: rows of a device's share that hold images; those behind them are zero.
    """

    def __init__(
        self,
        pyramid: np.ndarray | jax.Array,
        mesh: Mesh,
        dtype: np.typing.DTypeLike | None,
        chunk: int,
        device_gb: float,
        room: int,
    ):
        """Cut a gallery; place it if it is one block. The arguments are `ExactIndex`'s."""
        self._pyramid = np.asarray(pyramid)
        self._mesh = mesh
        self._dtype = np.dtype(dtype or self._pyramid.dtype)
        if self._pyramid.ndim != 3 or not {self._pyramid.dtype, self._dtype} <= set(_DTYPES):
            raise ValueError(
                "the gallery must be [L, N, D] and float32 or bfloat16, not "
                f"{self._pyramid.shape} and {self._pyramid.dtype}, kept as {self._dtype}"
            )
        levels, total, width = self._pyramid.shape
        share = max(-(-max(total, room) // mesh.size), 1)
        most = int(device_gb * 1e9 / max(levels * width * self._dtype.itemsize, 1))
        if share > most:
            share = _even_part(share, max(most // 2, 1))  # two blocks at a time
        self.chunk = round_up(_even_part(share, chunk), _WHOLE_VECTORS)
        self._share = max(share, self.chunk)
        # All devices get a part of a small gallery, not the first one all of it.
        self.used = min(self._share, max(-(-total // mesh.size), 1))
        rows = self.used * mesh.size
        self._starts = [
            (max(min(seen, total - rows), 0), seen) for seen in range(0, max(total, 1), rows)
        ]
        self.resident: Levels = ()
        if len(self._starts) == 1:
            self.resident = self._place(self._pyramid, 0, self._share, self.used)

    def __len__(self) -> int:
        """Return the number of images."""
        return self._pyramid.shape[1]

    def __iter__(self) -> Iterator[tuple[Levels, int, int]]:
        """Yield block by block its levels, [R, D] each, and two positions.

        The first is that of the block's first row; images before the second were in the blocks
        before. Rows behind the gallery's end are zero.
        """
        for first, seen in self._starts:
            levels = self.resident or self._place(self._pyramid, first, self._share, self.used)
            yield levels, first, seen
            self._forget_pages()

    def gather(self, positions: np.ndarray) -> tuple[Levels, int]:
        """Return some images, ``chunk`` rows a device, and how many of these rows hold images.

        At most ``chunk`` times the number of devices fit in.
        """
        used = -(-len(positions) // self._mesh.size)
        return self._place(self._pyramid[:, positions], 0, self.chunk, used), used

    def _place(self, pyramid: np.ndarray, first: int, share: int, used: int) -> Levels:
        """Put images from ``first`` on the devices, ``used`` on each, and zeros behind them."""
        rows = share * self._mesh.size
        split = sharding.split_over_devices(self._mesh)

        def place(level: np.ndarray) -> jax.Array:
            def part(index: tuple[slice, ...]) -> np.ndarray:
                begin = first + index[0].indices(rows)[0] // share * used
                values = level[begin : begin + used].astype(self._dtype, copy=False)
                missing = share - len(values)
                return np.pad(values, ((0, missing), (0, 0))) if missing else values

            return jax.make_array_from_callback((rows, level.shape[1]), split, part)

        return tuple(place(level) for level in pyramid)

    def _forget_pages(self) -> None:
        """Take what was read of a memory-mapped file out of this process's memory.

        It stays in the system's cache, and comes back when it is touched.
        """
        base, is_file = self._pyramid, False
        while isinstance(base, np.ndarray):
            # Only where nothing can have been written: a private change would be lost.
            is_file = is_file or (isinstance(base, np.memmap) and base.mode == "r")
            base = base.base
        if is_file and isinstance(base, mmap.mmap) and not self.resident:
            base.madvise(mmap.MADV_DONTNEED)


def _even_part(total: int, most: int) -> int:
    """Return the size of the fewest parts that have at most ``most`` each, all about alike."""
    return -(-total // -(-total // most))
