"""A linear stand-in for the score, for indexes that rank by inner products.

The score of a weighted branch, ``n . t / sqrt(w^2 . t^2)``, is no inner product: its norm depends
on the image (docs/method.md, section 11). The surrogate replaces that norm by one number a query,
branch and level. A query is then one vector and an image its concatenated pyramid, and the order of
their inner products is near the order of the scores; it is the same where no branch has a weight.

    surrogate = Surrogate.fit(sample)                      # [L, S, D], some images of the gallery
    vectors = surrogate.vectors(query)                     # [B, L * D]
    order = np.argsort(-vectors @ concatenated(gallery).T)
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from cmap_jax import scoring
from cmap_jax.numerics import NORM_FLOOR

SAMPLE = 4096  # images that the norms are estimated from


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """The linear form of a gallery's scores.

    Attributes:
        second_moments: mean over images of the squared embeddings, [L, D] float32.
    """

    second_moments: np.ndarray

    @classmethod
    def fit(cls, sample: Float[np.ndarray, "L S D"]) -> "Surrogate":
        """Estimate a gallery's moments from the pyramid of some of its images, one or more."""
        return cls(np.square(sample, dtype=np.float32).mean(axis=1))

    def vectors(self, query: scoring.ComposedQuery) -> Float[np.ndarray, "B LD"]:
        """Return a vector for each query, whose inner products stand in for its scores.

        Args:
            query: B queries on the host, which score the gallery's L levels.

        Returns:
            [B, L * D] float32; inner products are with rows of `concatenated`.
        """
        levels = [self._at_level(query, level) for level in range(len(self.second_moments))]
        return np.concatenate(levels, axis=1).astype(np.float32, copy=False)

    def _at_level(self, query: scoring.ComposedQuery, level: int) -> np.ndarray:
        """Return the sum over branches of their numerators over the expected norms, [B, D]."""
        total = np.zeros_like(query.branches[0].numerator[0], np.float32)
        for branch in query.branches:
            numerator = _level_of(branch.numerator, level)
            if branch.weight is not None:
                squared = np.square(_level_of(branch.weight, level)) @ self.second_moments[level]
                numerator = numerator / np.maximum(np.sqrt(squared), NORM_FLOOR)[:, None]
            total += numerator
        return total


def concatenated(pyramid: Float[np.ndarray, "L N D"]) -> Float[np.ndarray, "N LD"]:
    """Return each image's levels as one vector, high to low; float32 and contiguous."""
    levels, count, width = pyramid.shape
    rows = np.moveaxis(pyramid, 0, 1).reshape(count, levels * width)
    return np.ascontiguousarray(rows, np.float32)


def sample_positions(count: int, most: int = SAMPLE, seed: int = 0) -> np.ndarray:
    """Return positions of a random sample of ``count`` images, ascending, at most ``most``."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _level_of(vectors: np.ndarray, level: int) -> np.ndarray:
    """Return the vectors of a level, [B, D], of [L, B, D] or [1, B, D] if all levels share them."""
    return vectors[level if len(vectors) > 1 else 0]
