"""A linear stand-in for the score, for indexes that rank by inner products.

The score of a weighted branch, ``n . t / sqrt(w^2 . t^2)``, is no inner product: its norm depends
on the image. The surrogate is the linear form of an image's concatenated pyramid that is nearest to
the score among a query's best images, by least squares on a sample of the gallery
(docs/method.md, section 11). It is the score itself where no branch has a weight.

    surrogate = Surrogate(sample)                          # [L, S, D], some images of the gallery
    vectors = surrogate.vectors(query)                     # [B, L * D]
    order = np.argsort(-vectors @ concatenated(gallery).T)
"""

import jax
import numpy as np
from jaxtyping import Float

from cmap_jax import scoring
from cmap_jax.numerics import NORM_FLOOR
from cmap_jax.retrieval.batch_sizes import BatchSizes

SAMPLE = 1024  # images that a query's vector is fitted to
_DIRECTIONS = 32  # principal directions of the sample in which the vector is corrected
_PER_DIRECTION = 8  # images of the sample, at least, for each of them
_SHARPNESS = 2.0  # the weight of an image in the fit is exp(2 z), z its standardised product
_RIDGE = 1e-3  # relative to the variance in the first direction
_SIZES = BatchSizes((1, 8))  # numbers of queries that are scored at once


class Surrogate:
    """The linear form of a gallery's scores."""

    def __init__(self, sample: Float[np.ndarray, "L S D"]):
        """Find the principal directions.

        Args:
            sample: the pyramid of some images of the gallery, at random, one or more; float32.
        """
        self._sample = np.asarray(sample, np.float32)
        self._second_moments = np.square(self._sample).mean(axis=1)  # [L, D]
        self._rows = concatenated(self._sample)
        centered = self._rows - self._rows.mean(axis=0)
        count = min(_DIRECTIONS, len(self._rows) // _PER_DIRECTION, self._rows.shape[1])
        _, directions = np.linalg.eigh(centered.T @ centered)  # ascending
        self._directions = directions[:, ::-1][:, :count]  # [L * D, r]
        constant = np.ones((len(self._rows), 1), np.float32)
        self._features = np.concatenate([centered @ self._directions, constant], axis=1)

    def vectors(self, query: scoring.ComposedQuery) -> Float[np.ndarray, "B LD"]:
        """Return a vector for each query, whose inner products stand in for its scores.

        Args:
            query: B queries on the host, which score the gallery's L levels.

        Returns:
            [B, L * D] float32; inner products are with rows of `concatenated`.

        Raises:
            ValueError: the query scores other levels.
        """
        if len(query.levels) != len(self._sample):
            raise ValueError(
                f"the query scores the levels {query.levels}, but the index has {len(self._sample)}"
            )
        levels = [self._at_level(query, level) for level in range(len(self._sample))]
        vectors = np.concatenate(levels, axis=1)
        if all(branch.weight is None for branch in query.branches):
            return vectors
        products = vectors @ self._rows.T  # [B, S]
        residuals = _scores(query, self._sample) - products
        return vectors + self._fit(residuals, products) @ self._directions.T

    def by_expected_norms(self, query: scoring.ComposedQuery) -> Float[np.ndarray, "B LD"]:
        """Return `vectors` before the fit: numerators over norms by the mean of ``t^2``."""
        if len(query.levels) != len(self._sample):
            raise ValueError(
                f"the query scores the levels {query.levels}, but the index has {len(self._sample)}"
            )
        levels = [self._at_level(query, level) for level in range(len(self._sample))]
        return np.concatenate(levels, axis=1)

    def _at_level(self, query: scoring.ComposedQuery, level: int) -> np.ndarray:
        """Return the sum over branches of their numerators over the expected norms, [B, D]."""
        total = np.zeros_like(query.branches[0].numerator[0], np.float32)
        for branch in query.branches:
            numerator = _level_of(branch.numerator, level)
            if branch.weight is not None:
                squared = np.square(_level_of(branch.weight, level)) @ self._second_moments[level]
                numerator = numerator / np.maximum(np.sqrt(squared), NORM_FLOOR)[:, None]
            total += numerator
        return total

    def _fit(self, residuals: np.ndarray, products: np.ndarray) -> np.ndarray:
        """Return the coefficients of each query's residuals in the directions, [B, r].

        Args:
            residuals: scores of the sample less the products, [B, S].
            products: inner products of the sample with the uncorrected vectors, [B, S].
        """
        spread = np.maximum(products.std(axis=1, keepdims=True), NORM_FLOOR)
        weights = np.exp(_SHARPNESS * (products - products.mean(axis=1, keepdims=True)) / spread)
        weighted = weights[:, :, None] * self._features  # [B, S, r + 1]
        normal = weighted.swapaxes(1, 2) @ self._features
        ridge = _RIDGE * normal[:, :1, :1] + NORM_FLOOR
        right = weighted.swapaxes(1, 2) @ residuals[:, :, None]
        coefficients = np.linalg.solve(normal + ridge * np.eye(normal.shape[1]), right)
        return coefficients[:, :-1, 0].astype(np.float32)


def concatenated(pyramid: Float[np.ndarray, "L N D"]) -> Float[np.ndarray, "N LD"]:
    """Return each image's levels as one vector, high to low; float32 and contiguous."""
    levels, count, width = pyramid.shape
    rows = np.moveaxis(pyramid, 0, 1).reshape(count, levels * width)
    return np.ascontiguousarray(rows, np.float32)


def sample_positions(count: int, most: int, seed: int = 0) -> np.ndarray:
    """Return positions of a random sample of ``count`` images, ascending, at most ``most``."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def _level_of(vectors: np.ndarray, level: int) -> np.ndarray:
    """Return the vectors of a level, [B, D], of [L, B, D] or [1, B, D] if all levels share them."""
    return vectors[level if len(vectors) > 1 else 0]


_score = jax.jit(scoring.score)


def _scores(query: scoring.ComposedQuery, sample: np.ndarray) -> np.ndarray:
    """Return the scores of all images of a sample, [B, S], by a program for one of a few sizes."""
    parts = []
    for rows, size in _SIZES.parts(len(query)):
        part = scoring.take(query, rows)
        widths = ((0, 0), (0, size - len(part)), (0, 0))
        padded = jax.tree.map(lambda x, widths=widths: np.pad(x, widths), part)
        parts.append(np.asarray(_score(padded, sample))[: len(part)])
    return np.concatenate(parts)
