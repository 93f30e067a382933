"""Positions of images in a gallery, from any form that callers have them in."""

from collections.abc import Sequence, Set

import numpy as np

Positions = Sequence[int] | Sequence[Sequence[int]] | np.ndarray

NO_TARGET = -1  # stands for no image, and is the rank of a query without a correct one
_LEAST_WIDTH = 8  # most queries have no more positions: one compiled program serves them all


def padded_positions(
    positions: Positions | None, shape: tuple[int, int], width: int = 0
) -> np.ndarray:
    """Return each query's positions, sorted and each once, padded to a common width.

    Args:
        positions: one a query ([B]), several a query (a sequence of sequences or sets, or [B, M]
            padded with -1), a bool mask [B, N], or None for none at all.
        shape: queries and images, (B, N).
        width: columns that there are at least.

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
    for row, places in enumerate(positions):
        if isinstance(places, Set):
            places = sorted(places)
        places = np.atleast_1d(np.asarray(NO_TARGET if places is None else places))
        if places.dtype == bool:
            raise ValueError("give a mask as one bool array [B, N], not as a list of rows")
        places = places.astype(np.int64)
        if (places >= shape[1]).any():
            raise ValueError(f"row {row}: position {places.max()} in a gallery of {shape[1]}")
        # Each once: they are counted.
        rows.append(np.unique(places[places >= 0]))
    # A power of two, so that few programs serve all widths.
    width = round_to_power(max(width, max(map(len, rows), default=0), _LEAST_WIDTH))
    found = np.full((shape[0], width), NO_TARGET, np.int32)
    for row, places in zip(found, rows, strict=True):
        row[: len(places)] = places
    return found


def round_to_power(number: int) -> int:
    """Return the least power of two that is not below ``number``, which is 1 or more."""
    return 1 << (number - 1).bit_length()
