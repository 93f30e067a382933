"""A search's request to the devices' programs, on the host, and the images that take part in it."""

import dataclasses
from typing import Any

import jax
import numpy as np

from cmap_jax import scoring
from cmap_jax.retrieval.carry import Carry, Terms
from cmap_jax.retrieval.positions import NO_TARGET
from cmap_jax.retrieval.scores import Levels
from cmap_jax.retrieval.shard import Bounds


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments that the programs of a search have in common; see `scan.scan`."""

    levels: Levels
    query: scoring.ComposedQuery
    terms: Terms | None
    carry: Carry
    bounds: Bounds
    allowed: jax.Array | None = None

    def arguments(self, default: jax.Array | None = None) -> dict[str, Any]:
        """Return the arguments by name, with a mask in place of one that is not given."""
        names = [field.name for field in dataclasses.fields(self)]
        arguments = {name: getattr(self, name) for name in names}
        if self.allowed is None and self.levels:
            arguments["allowed"] = default
        return arguments


def check_mask(allowed: np.ndarray | None, count: int) -> np.ndarray | None:
    """Return a mask of images, or None for one that leaves out nothing."""
    if allowed is None:
        return None
    allowed = np.asarray(allowed)
    if allowed.dtype != bool or allowed.shape != (count,):
        raise ValueError(
            f"allowed must be a bool for each of {count} images, not {allowed.dtype} "
            f"{allowed.shape}"
        )
    return None if allowed.all() else allowed


def keep_allowed(positions: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """Return positions with padding in place of the images that take no part."""
    if allowed is None or not len(allowed):
        return positions
    return np.where((positions >= 0) & allowed[positions], positions, NO_TARGET)


@dataclasses.dataclass(frozen=True)
class Request:
    """A search's `scan.Terms` for B queries, on the host, and its k."""

    rows: np.ndarray
    thresholds: np.ndarray
    uncounted: np.ndarray
    excluded: np.ndarray
    k: int = 0

    def __len__(self) -> int:
        return len(self.rows)


@dataclasses.dataclass(frozen=True)
class Lists:
    """A search for the k best images of B queries alone."""

    queries: int
    k: int

    def __len__(self) -> int:
        return self.queries


def pad_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Return an array padded to ``count`` rows of -1, which is no position."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)), constant_values=NO_TARGET)
