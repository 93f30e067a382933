"""A gallery that its owner holds in one array or in several parts, read as if it were one.

A part is an array [L, n, D] of float32 or bfloat16, or int8 codes [L, n, D] with a float32 scale a
row [L, n]. A read within one part copies nothing, so that a memory-mapped file stays one.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float32

_ALIGNMENT = 64  # bytes
_FLOATS = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))


class Codes(Protocol):
    """Embeddings in eight bits: a row is its codes times its scale.

    Attributes:
        codes: int8 [L, n, D].
        scales: float32 [L, n].
    """

    codes: np.ndarray
    scales: np.ndarray


Part = np.ndarray | jax.Array | Codes
Leaves = tuple[Any, ...]  # the arrays of a part: (values,) or (codes, scales)


class Parts:
    """The parts of a gallery.

    Attributes:
        shape: (L, N, D) of all parts together.
        dtype: the dtype of every part: float32, bfloat16, or int8 with scales.
        rows: number of images in each part.
        ends: position behind the last image of each part.
    """

    def __init__(self, gallery: Part | Sequence[Part]):
        """Take one part or a sequence of them.

        Raises:
            ValueError: no part, parts that differ in levels, width or dtype, or a dtype that is
                none of the three.
        """
        parts = list(gallery) if isinstance(gallery, list | tuple) else [gallery]
        self._parts: list[Leaves] = [_leaves(part) for part in parts]
        forms = {(p[0].shape[0], p[0].shape[-1], p[0].dtype.name) for p in self._parts}
        if len(forms) != 1:
            raise ValueError(
                "the parts of a gallery must have the same levels, width and dtype; they have "
                f"{sorted(forms) or 'no part'}"
            )
        self.rows = [part[0].shape[1] for part in self._parts]
        self._starts = [0, *itertools.accumulate(self.rows)]
        self.ends = self._starts[1:]
        first = self._parts[0][0]
        self.shape = (first.shape[0], self._starts[-1], first.shape[2])
        self.dtype = np.dtype(first.dtype)

    def read(self, level: int, begin: int, end: int, dtype: np.dtype) -> Leaves:
        """Return rows of a level: values [n, D], or for int8 codes [n, D] and scales [n].

        Args:
            level: number of the level.
            begin: position of the first row.
            end: position behind the last row; rows behind the gallery's end are left out.
            dtype: float32, bfloat16, or the parts' own.
        """
        pieces = [
            _convert(tuple(leaf[level, rows] for leaf in self._parts[number]), dtype)
            for number, rows in self._overlaps(begin, end)
        ]
        return _join(pieces or [_convert(tuple(x[level, :0] for x in self._parts[0]), dtype)])

    def take(self, level: int, positions: np.ndarray, dtype: np.dtype) -> Leaves:
        """Return rows of a level, as `read` does.

        Args:
            level: number of the level.
            positions: [M] int, ascending.
            dtype: as in `read`.
        """
        cuts = np.searchsorted(positions, self._starts)
        pieces = [
            _convert(tuple(leaf[level, positions[low:high] - start] for leaf in part), dtype)
            for part, start, low, high in zip(
                self._parts, self._starts, cuts, cuts[1:], strict=False
            )
            if low < high
        ]
        return _join(pieces or [_convert(tuple(x[level, :0] for x in self._parts[0]), dtype)])

    def can_be_mapped(self, dtype: np.dtype) -> bool:
        """Tell whether a CPU device reads rows of this dtype where they lie, and copies none.

        That takes rows that begin at multiples of 64 bytes. Scales, which are few bytes, may lie
        anywhere.
        """
        values = [part[0] for part in self._parts]
        return all(
            isinstance(x, np.ndarray)
            and x.dtype == dtype
            and x.flags.c_contiguous
            and not (x.ctypes.data | x.strides[1]) % _ALIGNMENT
            for x in values
        )

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield the arrays that are on the host."""
        yield from (x for part in self._parts for x in part if isinstance(x, np.ndarray))

    def _overlaps(self, begin: int, end: int) -> Iterator[tuple[int, slice]]:
        """Yield each part that has some of the rows, and which of its own rows these are."""
        for number, (start, rows) in enumerate(zip(self._starts, self.rows, strict=False)):
            low, high = max(begin - start, 0), min(end - start, rows)
            if low < high:
                yield number, slice(low, high)


def _leaves(part: Part) -> Leaves:
    if hasattr(part, "codes"):
        leaves = (part.codes, part.scales)
        dtypes = tuple(np.dtype(leaf.dtype) for leaf in leaves)
        is_right = dtypes == (np.int8, np.float32) and leaves[1].shape == leaves[0].shape[:2]
    else:
        leaves = (part if isinstance(part, jax.Array) else np.asarray(part),)
        is_right = np.dtype(leaves[0].dtype) in _FLOATS
    if not is_right or leaves[0].ndim != 3:
        shapes = ", ".join(f"{leaf.shape} {leaf.dtype}" for leaf in leaves)
        raise ValueError(
            "the gallery must be [L, N, D] and float32 or bfloat16, or int8 with a float32 scale "
            f"a row, not {shapes}"
        )
    return leaves


def _convert(leaves: Leaves, dtype: np.dtype) -> Leaves:
    """Return rows in a dtype: codes become floating point unless they are to stay."""
    if leaves[0].dtype == dtype:
        return leaves
    values = leaves[0]
    if len(leaves) == 2:
        values = _times(*leaves)
    return (values.astype(dtype),)


def _times(codes: np.ndarray, scales: np.ndarray) -> Float32[np.ndarray, "n D"]:
    return codes.astype(np.float32) * scales[:, None]


def _join(pieces: list[Leaves]) -> Leaves:
    if len(pieces) == 1:
        return pieces[0]
    return tuple(np.concatenate(leaves) for leaves in zip(*pieces, strict=True))
