"""Garments: six attributes, every combination of their values, and the split into train and test.

A garment is a point of a grid (4 types x 8 colors x 5 patterns x 4 sleeves x 4 necklines x
3 lengths = 7,680), so "the same, but ..." has exactly one answer in the whole grid.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

# The order is that of a garment's id. The values of an ordinal attribute are in the order of its
# scale.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "type": ("dress", "shirt", "coat", "jumpsuit"),
    "color": ("red", "pink", "yellow", "green", "blue", "purple", "white", "black"),
    "pattern": ("solid", "striped", "dotted", "checked", "floral"),
    "sleeves": ("sleeveless", "short", "elbow", "long"),
    "neckline": ("round", "v", "square", "high"),
    "length": ("short", "medium", "long"),
}
NAMES: tuple[str, ...] = tuple(ATTRIBUTES)
SIZES: tuple[int, ...] = tuple(len(values) for values in ATTRIBUTES.values())
ORDINAL: frozenset[str] = frozenset({"sleeves", "length"})  # may be "longer" or "shorter"
COUNT: int = math.prod(SIZES)

# Numbers of garments; the rest of the grid is for training.
TEST_GARMENTS = 2000
VAL_GARMENTS = 1000


@dataclasses.dataclass(frozen=True)
class Garment:
    """One combination of values, each spelled as in `ATTRIBUTES`.

    Raises:
        ValueError: a value is not one of its attribute's.
    """

    type: str
    color: str
    pattern: str
    sleeves: str
    neckline: str
    length: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {values}")

    @property
    def id(self) -> str:
        """The values in the order of `NAMES`, such as `dress-red-dotted-long-v-short`."""
        return "-".join(getattr(self, name) for name in NAMES)

    @property
    def index(self) -> int:
        """The position in the grid, 0 to `COUNT` - 1, the last attribute varying fastest."""
        codes = [ATTRIBUTES[name].index(getattr(self, name)) for name in NAMES]
        return int(np.ravel_multi_index(codes, SIZES))


def garment(index: int) -> Garment:
    """The garment at a position in the grid; the inverse of `Garment.index`.

    Raises:
        ValueError: `index` is outside 0 to `COUNT` - 1.
    """
    codes = np.unravel_index(index, SIZES)
    return Garment(*(ATTRIBUTES[name][code] for name, code in zip(NAMES, codes, strict=True)))


@functools.cache
def grid() -> np.ndarray:
    """All combinations as value numbers: [COUNT, 6] int8, read-only; row i is `garment(i)`."""
    codes = np.stack(np.unravel_index(np.arange(COUNT), SIZES), axis=1).astype(np.int8)
    codes.flags.writeable = False
    return codes


def split(seed: int) -> dict[str, np.ndarray]:
    """Deals the grid into `train`, `val` and `test`, at random and without overlap.

    Returns:
        Sorted indices, int64: `TEST_GARMENTS` for test, `VAL_GARMENTS` for val, the rest train.
    """
    order = np.random.default_rng([seed, 0]).permutation(COUNT)
    test, val, train = np.split(order, [TEST_GARMENTS, TEST_GARMENTS + VAL_GARMENTS])
    return {"train": np.sort(train), "val": np.sort(val), "test": np.sort(test)}
