"""Search in two steps: an index proposes a short list of images, and exact scores rank it.

The index ranks by the inner products of `surrogate.Surrogate`. The list is long enough that few of
the best images are missing from it. Its images are scored exactly, by the program that all searches
share, so that the scores of two backends may be compared.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring
from cmap_jax.numerics import round_up
from cmap_jax.retrieval.backends.surrogate import Surrogate, sample_positions
from cmap_jax.retrieval.exact import SearchResult
from cmap_jax.retrieval.placement import BROKEN
from cmap_jax.retrieval.positions import NO_TARGET, round_to_power

# From vectors of queries [B, L * D], a number M, and the mask of the images that may be returned or
# None: positions by descending inner product, [B, M] int, with -1 behind the last one.
Propose = Callable[[np.ndarray, int, np.ndarray | None], np.ndarray]

_QUERIES_AT_ONCE = 8  # their images, 512 each at 3 x 512 numbers, take 25 MB
# Rows that vector units take at once, as in `retrieval.blocks`: equal images score equally.
_WHOLE_VECTORS = 32


class ShortlistBackend:
    """A stored index whose images an approximate index proposes and exact scores rank."""

    def __init__(self, stored: Any, propose: Propose, *, shortlist: int, mesh: Mesh):
        """Estimate the surrogate from a sample of the images.

        Args:
            stored: the embeddings, a `StoredIndex`.
            propose: the approximate index.
            shortlist: images a query that are scored, 1 or more; a search for more scores more.
            mesh: the first of its devices computes the scores.
        """
        self._stored = stored
        self._propose = propose
        self._shortlist = shortlist
        self._device = mesh.devices.flat[0]
        self._surrogate = fit_surrogate(stored)

    def search(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """Return the best images of each query; see `entry.Backend`."""
        total = len(self._stored)
        k = min(k, total)
        width = round_up(max(self._shortlist, k), _WHOLE_VECTORS)
        count = total if allowed is None else int(allowed.sum())
        query = jax.tree.map(np.asarray, query.replace(preservation=None))
        if count > width:
            vectors = self._surrogate.vectors(query)
            result = self._rank(query, self._propose(vectors, width, allowed), k, width)
            if (result.positions != NO_TARGET).all():
                return result
        # After most filters few images are left, and an index may lose its way among the others.
        every = np.arange(total) if allowed is None else np.flatnonzero(allowed)
        return self._rank_all(query, every, k, width)

    def _rank_all(
        self, query: scoring.ComposedQuery, every: np.ndarray, k: int, width: int
    ) -> SearchResult:
        """Return the best of some images, whose positions are given, [A] int; all are scored."""
        parts = [
            self._rank(query, np.tile(every[start : start + width], (len(query), 1)), k, width)
            for start in range(0, max(len(every), 1), width)
        ]
        joined = (
            np.concatenate([getattr(p, n) for p in parts], 1) for n in ("scores", "positions")
        )
        return _best(*joined, k)

    def _rank(
        self, query: scoring.ComposedQuery, positions: np.ndarray, k: int, width: int
    ) -> SearchResult:
        """Return the best of some images of each query.

        Args:
            query: B queries, on the host.
            positions: [B, M] int, at most ``width`` of them, with -1 for none.
            k: number of images a query, at most ``width``.
            width: number of images to which the program is padded.
        """
        missing = width - positions.shape[1]
        positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=NO_TARGET)
        scores = [
            self._score(scoring.take(query, rows), positions[rows])
            for start in range(0, len(query), _QUERIES_AT_ONCE)
            for rows in [slice(start, start + _QUERIES_AT_ONCE)]
        ]
        scores = np.where(positions == NO_TARGET, np.float32(-np.inf), np.concatenate(scores))
        if np.isnan(scores).any():
            raise ValueError(BROKEN)
        return _best(scores, positions, k)

    def _score(self, query: scoring.ComposedQuery, positions: np.ndarray) -> np.ndarray:
        """Return the scores of some images of each query, [B, M]; those at -1 mean nothing."""
        count, width = positions.shape
        missing = round_to_power(count) - count  # few programs serve all numbers of queries
        pyramid = self._stored.rows(np.maximum(positions, 0).ravel())
        pyramid = pyramid.reshape(len(pyramid), count, width, -1)
        query, pyramid = jax.tree.map(
            lambda x: np.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2))), (query, pyramid)
        )
        arguments = jax.device_put((query, pyramid), self._device)
        return np.asarray(_score_rows(*arguments))[:count]


def fit_surrogate(stored: Any) -> Surrogate:
    """Return the surrogate of a stored index, which depends on nothing but its embeddings."""
    return Surrogate.fit(stored.rows(sample_positions(len(stored))))


@jax.jit
def _score_rows(query: scoring.ComposedQuery, pyramid: jax.Array) -> jax.Array:
    """Score each query against images of its own, [L, B, M, D] -> [B, M]."""

    def score(query: scoring.ComposedQuery, targets: jax.Array) -> jax.Array:
        return scoring.score(jax.tree.map(lambda x: x[:, None], query), targets)[0]

    return jax.vmap(score, in_axes=1)(query, pyramid)


def _best(scores: np.ndarray, positions: np.ndarray, k: int) -> SearchResult:
    """Return the k best of each row; the lower position wins a tie."""
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    best = (np.take_along_axis(x, order, axis=1) for x in (scores, positions.astype(np.int32)))
    return SearchResult(*best, None)
