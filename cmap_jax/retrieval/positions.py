"""Positions of images in a gallery, in one form from the several that callers may give."""

from collections.abc import Sequence, Set

import numpy as np

Positions = Sequence[int] | Sequence[Sequence[int]] | np.ndarray

NO_TARGET = -1  # padding among positions, and the rank of a query without a correct image
_LEAST_WIDTH = 8  # few queries have more positions: one compiled program serves most


def padded_positions(
    positions: Positions | None, shape: tuple[int, int], width: int = 0
) -> np.ndarray:
    """Return each query's positions, sorted and each once, padded to a common width.

    Args:
        positions: one a query ([B]), several a query (a sequence of sequences or sets, or [B, M]
            padded with -1), a bool mask [B, N], or None for none at all.
        shape: numbers of queries and images, (B, N).
        width: least number of columns, 0 or more.

    Returns:
        [B, M] int32, padded with -1; M is a power of two, at least 8.

    Raises:
        ValueError: not a row for each query, a position outside the gallery, or rows of bools.
    """
    if hasattr(positions, "dtype"):
        positions = np.asarray(positions)  # a JAX array too
    if isinstance(positions, np.ndarray) and positions.dtype == bool:
        if positions.shape != shape:
            raise ValueError(f"a mask must be shaped like the scores {shape}: {positions.shape}")
        positions = [np.flatnonzero(row) for row in positions]
    if positions is None:
        positions = np.full(shape[0], NO_TARGET)
    if len(positions) != shape[0]:
        raise ValueError(f"{shape[0]} rows of scores, but positions for {len(positions)}")
    rows = []
    for number, row in enumerate(positions):
        if isinstance(row, Set):
            row = sorted(row)
        row = np.atleast_1d(np.asarray(NO_TARGET if row is None else row))
        if row.dtype == bool:
            raise ValueError("give a mask as one bool array [B, N], not as a list of rows")
        row = row.astype(np.int64)
        if (row >= shape[1]).any():
            raise ValueError(f"row {number}: position {row.max()} in a gallery of {shape[1]}")
        # Without duplicates, because images are counted by their positions.
        rows.append(np.unique(row[row >= 0]))
    # A power of two, so that few programs serve all widths.
    width = round_to_power(max(width, max(map(len, rows), default=0), _LEAST_WIDTH))
    padded = np.full((shape[0], width), NO_TARGET, np.int32)
    for padded_row, row in zip(padded, rows, strict=True):
        padded_row[: len(row)] = row
    return padded


def round_to_power(number: int) -> int:
    """Return the least power of two that is not below ``number``, which is 1 or more."""
    return 1 << (number - 1).bit_length()
