"""Search in two steps: an index proposes a short list of images, and exact scores rank it.

The index ranks by the inner products of `surrogate.Surrogate`. The list is long enough that few of
the best images are missing from it. Its images are scored in the form that all searches share, so
that the scores of two backends may be compared.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring
from cmap_jax.numerics import round_up
from cmap_jax.retrieval.backends.entry import Backend
from cmap_jax.retrieval.backends.surrogate import SAMPLE, Surrogate, sample_positions
from cmap_jax.retrieval.batch_sizes import BatchSizes
from cmap_jax.retrieval.exact import ExactIndex, Padding, SearchResult
from cmap_jax.retrieval.index_files.reading import StoredIndex
from cmap_jax.retrieval.placement import BROKEN
from cmap_jax.retrieval.positions import NO_TARGET

# From vectors of queries [B, L * D], a number M, and the mask of the images that may be returned or
# None: positions by descending inner product, [B, M] int, with -1 behind the last one.
Propose = Callable[[np.ndarray, int, np.ndarray | None], np.ndarray]

# Queries whose images are read and scored at once; 512 images of 3 x 512 numbers for 8 are 25 MB.
_SIZES = BatchSizes((1, 8))
# Rows that vector units take at once, as in `retrieval.blocks`: equal images score equally.
_WHOLE_VECTORS = 32
_LISTS = ("scores", "positions")  # fields of a `SearchResult`


class ShortlistBackend(Backend):
    """A stored index whose images an approximate index proposes and exact scores rank."""

    def __init__(
        self,
        stored: StoredIndex,
        propose: Propose,
        *,
        shortlist: int,
        mesh: Mesh,
        close: Callable[[], None] = lambda: None,
    ):
        """Fit the surrogate to a sample of the images.

        The devices get no image before a search needs all of them.

        Args:
            stored: the embeddings.
            propose: the approximate index.
            shortlist: images a query that are scored, 1 or more; a search for more scores more.
            mesh: the first of its devices computes the scores; all search exactly where the index
                lost its way.
            close: closes the approximate index.
        """
        self._stored = stored
        self._propose = propose
        self._shortlist = shortlist
        self._mesh = mesh
        self._close = close
        self._device = mesh.devices.flat[0]
        self._surrogate = fit_surrogate(stored)

    def search(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None = None
    ) -> SearchResult:
        """Return the best images of each query; see `entry.Backend`."""
        query = jax.tree.map(np.asarray, query.replace(preservation=None))
        vectors = self._surrogate.vectors(query)  # refuses other levels, whichever way is taken
        k = min(k, len(self._stored))
        every = np.arange(len(self._stored)) if allowed is None else np.flatnonzero(allowed)
        wanted = max(self._shortlist, k)
        if len(every) <= wanted:  # as after most filters
            return self._rank(query, every[None], k)
        result = self._rank(query, self._propose(vectors, wanted, allowed), k)
        lost = np.flatnonzero((result.positions == NO_TARGET).any(axis=1))
        if len(lost):  # an index may lose its way where most images are filtered out
            result.scores[lost], result.positions[lost] = self._search_all(
                scoring.take(query, lost), k, allowed
            )
        return result

    def warm_up(self, query: scoring.ComposedQuery, k: int) -> None:
        """Compile what no search needs but one whose index lost its way.

        Args:
            query: queries of any content.
            k: largest number of images that searches ask for.
        """
        query = jax.tree.map(np.asarray, query.replace(preservation=None))
        first = np.arange(len(self._stored)) == 0  # blocks without an allowed image are not read
        for size in _SIZES:
            self._search_all(scoring.take(query, np.zeros(size, np.int64)), k, first)

    def _search_all(
        self, query: scoring.ComposedQuery, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores and the positions of the best images of all, [B, k] each."""
        results = []
        for rows, size in _SIZES.parts(len(query)):
            part = scoring.take(query, rows)
            padding = Padding(queries=size)
            results.append(self._every_image.search(part, k, allowed=allowed, padding=padding))
        return tuple(np.concatenate([getattr(r, n) for r in results]) for n in _LISTS)

    @functools.cached_property
    def _every_image(self) -> ExactIndex:
        """The gallery, for the queries that the index lost."""
        return ExactIndex(self._stored.parts, self._mesh)

    def close(self) -> None:
        """Close the approximate index."""
        self._close()

    def _rank(self, query: scoring.ComposedQuery, positions: np.ndarray, k: int) -> SearchResult:
        """Return the best k of some images by their scores.

        Args:
            query: B queries, on the host.
            positions: images of each query, [B, M] int with -1 for none, or of all, [1, M].
            k: number of images a query.
        """
        missing = max(k - positions.shape[1], 0)
        positions = np.pad(positions, ((0, 0), (0, missing)), constant_values=NO_TARGET)
        positions = np.broadcast_to(positions, (len(query), positions.shape[1]))
        scores = np.full(positions.shape, -np.inf, np.float32)
        for rows, columns, size in self._pieces(positions.shape):
            piece = self._score(scoring.take(query, rows), positions[rows, columns], size)
            scores[rows, columns] = piece
        scores = np.where(positions == NO_TARGET, np.float32(-np.inf), scores)
        if np.isnan(scores).any():
            raise ValueError(BROKEN)
        order = np.lexsort((positions, -scores), axis=1)[:, :k]  # the lower position wins a tie
        best, where = (np.take_along_axis(x, order, axis=1) for x in (scores, positions))
        return SearchResult(best, where.astype(np.int32), None)

    def _pieces(self, shape: tuple[int, int]) -> Iterator[tuple[slice, slice, int]]:
        """Yield queries and images that are scored at once, and the padded number of queries."""
        for rows, size in _SIZES.parts(shape[0]):
            for start in range(0, shape[1], self._shortlist):
                yield rows, slice(start, start + self._shortlist), size

    def _score(self, query: scoring.ComposedQuery, positions: np.ndarray, size: int) -> np.ndarray:
        """Return the scores of some images of each query, [B, M]; those at -1 mean nothing."""
        count, images = positions.shape
        widths = (0, size - count), (0, round_up(self._shortlist, _WHOLE_VECTORS) - images)
        positions = np.pad(np.maximum(positions, 0), widths)
        pyramid = self._stored.rows(positions.ravel())
        pyramid = pyramid.reshape(len(pyramid), *positions.shape, -1)
        query = jax.tree.map(lambda x: np.pad(x, ((0, 0), widths[0], (0, 0))), query)
        query, pyramid = jax.device_put((query, pyramid), self._device)
        return np.asarray(_score_rows(query, pyramid))[:count, :images]


def fit_surrogate(stored: StoredIndex) -> Surrogate:
    """Return the surrogate of a stored index, which depends on nothing but its embeddings."""
    return Surrogate(stored.rows(sample_positions(len(stored), SAMPLE)))


@jax.jit
def _score_rows(query: scoring.ComposedQuery, pyramid: jax.Array) -> jax.Array:
    """Score each query against images of its own, [L, B, M, D] -> [B, M]."""

    def score(query: scoring.ComposedQuery, targets: jax.Array) -> jax.Array:
        return scoring.score(jax.tree.map(lambda x: x[:, None], query), targets)[0]

    return jax.vmap(score, in_axes=1)(query, pyramid)
