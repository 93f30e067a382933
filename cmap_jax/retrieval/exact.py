"""Exact search in a gallery of any size: first images and ranks in one pass over its scores.

The gallery is split over all devices of a mesh. If it fits into their memory it stays there; if
not, it is read block by block from where it is, such as a memory-mapped file, in every search.

    index = ExactIndex(np.load("pyramid.npy", mmap_mode="r"), sharding.make_mesh())
    found = index.search(query, 50, targets=targets, exclude=references)
    found.positions, found.ranks                                # [B, 50], [B]

The result is that of all scores in one matrix, with ties by the lower position.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cmap_jax import scoring, sharding
from cmap_jax.retrieval import scan
from cmap_jax.retrieval.blocks import Blocks, round_up
from cmap_jax.retrieval.placement import BROKEN, Placement, Thresholds
from cmap_jax.retrieval.positions import NO_TARGET, Positions, padded_positions


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found for B queries.

    Attributes:
        scores: of the best images, [B, k] float32, best first; -inf for excluded ones.
        positions: their positions in the gallery, [B, k] int32; ties go to the lower one.
        placements: where each query's best correct image stands, [B, 1], or each correct one where
            that was asked for, [B, M]; None where no targets were given.
    """

    scores: np.ndarray
    positions: np.ndarray
    placements: Placement | None

    @property
    def ranks(self) -> np.ndarray | None:
        """Expected rank of each query's best correct image, as `evaluation.metrics.ranks`, [B]."""
        return None if self.placements is None else self.placements.best().ranks()


class ExactIndex:
    """A gallery on the devices of a mesh, or passing through them.

    In several processes all make the same index of the same gallery and search together; each has
    the results.
    """

    def __init__(
        self,
        pyramid: np.ndarray | jax.Array,
        mesh: Mesh,
        *,
        dtype: np.typing.DTypeLike | None = None,
        chunk: int = 1024,
        device_gb: float = 4.0,
    ):
        """Place the gallery, if it fits.

        Args:
            pyramid: the gallery, [L, N, D], levels high to low, each embedding l2-normalised;
                float32 or bfloat16. It must not change any more: CPU devices share its memory.
            mesh: the devices.
            dtype: what it is kept in on the devices; None: as it is. Scores are float32 always.
            chunk: images that a device scores at once, a few more where that is no multiple of 32.
            device_gb: most that the gallery takes of a device's memory, in 10^9 bytes. A larger
                one passes through in blocks, of which two are there at a time.

        Raises:
            ValueError: a pyramid of another shape or type.
        """
        self._mesh = mesh
        self._blocks = Blocks(pyramid, mesh, dtype, chunk, device_gb)

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self._blocks)

    def search(
        self,
        query: scoring.ComposedQuery,
        k: int,
        *,
        targets: Positions | None = None,
        exclude: Positions | None = None,
        every_target: bool = False,
    ) -> Found:
        """Return the k best images of each query, and where its correct ones stand.

        Args:
            query: B queries, on the host or replicated.
            k: images a query; all N where there are fewer; 0 for the placement alone.
            targets: correct positions: one a query ([B]), several (a sequence of sequences, or
                [B, M] padded with -1), or a bool mask [B, N].
            exclude: positions whose score counts as -inf, in the same forms; they come last.
            every_target: place every correct image, not only the best one of each query.

        Raises:
            ValueError: shapes that do not fit, a position outside the gallery, or a NaN score.
        """
        shape, k = (len(query), len(self)), min(k, len(self))
        correct, excluded = (padded_positions(p, shape) for p in (targets, exclude))
        is_excluded = (correct[:, :, None] == excluded[:, None, :]).any(axis=2)
        in_search = np.where(is_excluded, NO_TARGET, correct)
        query = self._prepare(query)
        picked = self._pick(query, in_search)
        thresholds = Thresholds.build(picked, correct, excluded, every=every_target)
        uncounted = np.concatenate([in_search, excluded], axis=1)
        terms = scan.Terms(
            *(_fill_up(x, len(query)) for x in (thresholds.scores, uncounted, excluded))
        )
        scores, positions, *counts, broken = (x[: shape[0]] for x in self._scan(query, terms, k))
        if broken.any():
            raise ValueError(BROKEN)
        if targets is None:
            return Found(scores, positions, None)
        return Found(scores, positions, thresholds.place(*counts))

    def scores_at(self, query: scoring.ComposedQuery, positions: np.ndarray) -> np.ndarray:
        """Return the scores of a few images of each query, bit by bit those of a search.

        Args:
            query: B queries, as in `search`.
            positions: [B, M] int, -1 for none.

        Returns:
            [B, M] float32; -inf for none.

        Raises:
            ValueError: shapes that do not fit, or a position outside the gallery.
        """
        positions = np.asarray(positions)
        if positions.ndim != 2 or len(positions) != len(query):
            raise ValueError(f"{len(query)} queries, but positions {positions.shape}")
        if positions.max(initial=NO_TARGET) >= len(self):
            raise ValueError(f"position {positions.max()} in a gallery of {len(self)}")
        return self._pick(self._prepare(query), positions)

    def _pick(self, query: scoring.ComposedQuery, positions: np.ndarray) -> np.ndarray:
        wanted = np.unique(positions[positions >= 0])
        if not wanted.size:
            return np.full(positions.shape, -np.inf, np.float32)
        rows = np.where(positions >= 0, np.searchsorted(wanted, positions), NO_TARGET)
        picked = scan.pick(
            self._blocks.gather(wanted),
            query,
            _fill_up(rows.astype(np.int32), len(query)),
            mesh=self._mesh,
            size=self._blocks.chunk,
        )
        return np.asarray(picked)[: len(positions)]

    def _scan(self, query: scoring.ComposedQuery, terms: scan.Terms, k: int) -> list[np.ndarray]:
        """Pass the whole gallery by the queries; return what `scan.merge` does."""
        terms, total = self._replicate(terms), np.int32(len(self))
        carry = scan.start(
            mesh=self._mesh, queries=len(query), thresholds=terms.thresholds.shape[1], k=k
        )
        for levels, first, seen in self._blocks:
            before, bounds = carry, (np.int32(first), np.int32(seen), total)
            carry = scan.scan(
                levels, query, terms, carry, *bounds, mesh=self._mesh, size=self._blocks.chunk
            )
            # While this block is scanned the next one is placed, and no third.
            jax.block_until_ready(before)
        return [np.asarray(x) for x in scan.merge(carry, mesh=self._mesh)]

    def _prepare(self, query: scoring.ComposedQuery) -> scoring.ComposedQuery:
        """Put queries on every device, filled up with zeros so that few programs serve all B."""
        step = 1 << max(len(query).bit_length() - 3, 0)
        missing = round_up(len(query), step) - len(query)
        widths = ((0, 0), (0, missing), (0, 0))
        query = query.replace(preservation=None)
        return self._replicate(jax.tree.map(lambda x: np.pad(np.asarray(x), widths), query))

    def _replicate(self, tree: Any) -> Any:
        whole = sharding.replicated(self._mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: x[index]), tree
        )


def _fill_up(rows: np.ndarray, count: int) -> np.ndarray:
    """Return ``count`` rows; the new ones hold -1, which is no position."""
    return np.pad(rows, ((0, count - len(rows)), (0, 0)), constant_values=NO_TARGET)
