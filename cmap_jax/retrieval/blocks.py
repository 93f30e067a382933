"""A gallery in blocks, each split over all devices: resident ones, or many that are streamed.

Every block has the same number of rows, and every device has the same number of a block's rows: its
shard. The last block overlaps the one before it instead of being padded. A shard may have more rows
than images, so that galleries of several sizes have blocks of one shape, which one compiled program
serves. Nothing is copied on the host unless a shard needs padding or another dtype, or spans two
parts of the gallery. A CPU device reads the gallery's own memory, which may be memory-mapped files.
There, blocks lie within parts: the last one of each part overlaps the one before it.
"""

import logging
import mmap
from collections.abc import Iterator, Sequence

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from cmap_jax import sharding
from cmap_jax.numerics import round_up
from cmap_jax.retrieval.device_memory import bytes_for_gallery
from cmap_jax.retrieval.parts import Leaves, Part, Parts
from cmap_jax.retrieval.scores import Levels

_logger = logging.getLogger(__name__)

_KEPT = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))
# Vector units take 16 images at once. A remainder is computed by other instructions, which may
# round differently: two equal images would no longer tie.
WHOLE_VECTORS = 32
# A shard of fewer rows is padded to whole vectors, which copies it; larger ones are not copied.
_SMALL = 1024
# The call for a block takes as long on a CPU as scoring so many rows.
_BLOCK_TIME = 1000
# Most images that are copied so that there are fewer blocks, as a part of all.
_COPIED = 0.05


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
        row_bytes = max(levels * width * self._dtype.itemsize, 1)
        most = self._most_rows(device_gb, row_bytes)
        is_resident = most is None or shard_rows <= most
        if not is_resident:  # two blocks are on the devices at a time
            shard_rows = even_part(shard_rows, max(most // 2, 1))
        is_within_parts = is_resident and len(self._parts.rows) > 1 and _is_on_cpu(mesh)
        if is_within_parts:
            shard_rows = min(shard_rows, _shard_within(self._parts.rows, mesh.size, chunk))
        least = round_up(even_part(shard_rows, chunk or _SMALL), WHOLE_VECTORS)
        self.shard_rows = max(shard_rows, least)
        # A small gallery is spread over all devices, though the first one has room for all of it.
        self.used = min(self.shard_rows, max(-(-total // mesh.size), 1))
        block_images = self.used * mesh.size
        ends = self._parts.ends if is_within_parts else []
        self._starts = list(_starts(total, block_images, ends)) or [(0, 0)]
        self._block_images = block_images
        self.resident: list[Levels] = []
        if is_resident or len(self._starts) == 1:
            self.resident = [self._put(first) for first, _ in self._starts]
        else:
            _logger.info(
                "every search streams the gallery, of which a device would take %.1f GB but may "
                "take %.1f; device_gb allows more",
                *(-(-total // mesh.size) * row_bytes / 1e9, most * row_bytes / 1e9),
            )

    def _most_rows(self, device_gb: float, row_bytes: int) -> int | None:
        """Return the most rows of a device; None for as many as there are."""
        if device_gb > 0:
            return int(device_gb * 1e9 / row_bytes)
        if _is_on_cpu(self._mesh) and self._parts.can_be_mapped(self._dtype):
            return None
        return int(bytes_for_gallery(self._mesh) / row_bytes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the gallery, (L, N, D)."""
        return self._parts.shape

    def among(self, allowed: np.ndarray | None) -> Iterator[tuple[Levels, int, int]]:
        """Yield the levels of blocks, [R, D] each, and two positions.

        The first position is that of the block's first row. Images before the second one were in
        earlier blocks. Rows behind the gallery's end are zero.

        Args:
            allowed: mask of the images that take part, [N] bool; None: all of them. Blocks without
                one are left out, but there is always a block.
        """
        starts = list(enumerate(self._starts))
        if allowed is not None:
            some = [x for x in starts if allowed[x[1][1] : x[1][0] + self._block_images].any()]
            starts = some or starts[:1]
        for number, (first, seen) in starts:
            yield self.resident[number] if self.resident else self._put(first), first, seen
            self._forget_pages()

    def spread(self, mask: np.ndarray, first: int = 0) -> jax.Array:
        """Return a mask of images [N] for the block that begins at a position.

        Its rows are on the devices that have the block's.
        """
        read = lambda begin, end: (mask[begin:end],)  # noqa: E731
        return self._place(read, first, self.shard_rows, self.used)[0]

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


def _is_on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def _shard_within(parts: Sequence[int], devices: int, chunk: int | None) -> int:
    """Return the rows of shards whose blocks lie within parts of these sizes, and need no padding.

    It is the size of a part, or half of one, that takes the least time: where a part is no multiple
    of it, the last two blocks of the part overlap, and their common rows are scored twice. Blocks
    that span several parts are copies of a few images: those of parts that are much shorter than
    the others, and little else.
    """
    ends = np.cumsum(parts)
    total = int(ends[-1])

    def seen(rows: int) -> tuple[int, int]:
        """Return how many images are copied, and the time of a search in rows."""
        size = rows * devices
        first = np.array([first for first, _ in _starts(total, size, ends)])
        is_copy = first + size > ends[np.searchsorted(ends, first, side="right")]
        return size * int(is_copy.sum()), (size + _BLOCK_TIME * devices) * len(first)

    def unpadded(images: int) -> int:
        rows = max(images // devices, 1)
        is_padded = round_up(even_part(rows, chunk or _SMALL), WHOLE_VECTORS) > rows
        return max(rows - rows % WHOLE_VECTORS, 1) if is_padded else rows

    long = {part for part in parts if 2 * part > max(parts)}
    if not long:
        return 1
    costs = {rows: seen(rows) for part in long for rows in map(unpadded, (part, -(-part // 2)))}
    most = costs[unpadded(min(long))][0] + total * _COPIED
    return min((time, rows) for rows, (copied, time) in costs.items() if copied <= most)[1]


def _starts(total: int, size: int, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first position of each block, and that of its first image that is in no other.

    Args:
        total: number of images.
        size: images of a block.
        ends: positions behind parts that blocks should lie within, in order; none for one part.
    """
    limits, begin = [], 0
    for end in ends:
        if end - begin >= size:
            # Images of the parts before that are too short for a block, and those of this part.
            limits += [(begin, total), (end, end)]
        begin = end
    seen = 0
    for limit, last in (*limits, (total, total)):
        while seen < limit:
            first = max(min(seen, last - size), 0)
            yield first, seen
            seen = first + size


def even_part(total: int, most: int) -> int:
    """Return the size of the parts of ``total``, as few and as even as ``most`` a part allows."""
    return -(-total // -(-total // most))
