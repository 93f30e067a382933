"""The queries of one evaluation and category: scores come in, outcomes and rankings come out."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmap_jax.evaluation import metrics
from cmap_jax.protocols import Protocol

TOP = 50  # images a query in the rankings


class Ranking:
    """Ranks the queries of a category, block by block.

    Attributes:
        annotations: annotation of each query ranked so far.
        records: a record a query, where they are kept: "query", "reference", "text", "targets",
            "rank" (0-based, None without a correct image in the gallery), "top" (ids, best first)
            and, where queries have subsets, "subset_top".
    """

    def __init__(self, protocol: Protocol, gallery: Sequence[str], *, keep_records: bool):
        """Start with no query.

        Args:
            protocol: the rules.
            gallery: image ids, in the order of the scores' columns.
            keep_records: whether to make `records`.
        """
        self._protocol = protocol
        self._gallery = gallery
        self._place = {image: i for i, image in enumerate(gallery)}
        self._keep_records = keep_records
        self._waiting: tuple[list, jax.Array | None] = ([], None)
        self._ranks: list[np.ndarray] = []
        self._subset_ranks: list[np.ndarray] = []
        self._precisions: list[dict[int, np.ndarray]] = []
        self.annotations: list[str] = []
        self.records: list[dict[str, Any]] = []

    def add(self, queries: Sequence, scores: jax.Array) -> None:
        """Take the next queries and their scores, [B, N]."""
        if self._protocol.captions == "averaged":
            queries, scores = self._average(queries, scores)
            if not queries:
                return
        place = self._place
        targets = [[place[t] for t in q.targets if t in place] for q in queries]
        exclude = self._protocol.reference == "excluded"
        references = [place.get(q.reference, -1) if exclude else -1 for q in queries]
        ranks = metrics.ranks(scores, [t or [-1] for t in targets], references)
        self._ranks.append(ranks)
        self.annotations += [q.annotation for q in queries]
        subsets = None
        if self._protocol.cutoffs("R_subset"):
            subsets = self._rank_subsets(queries, scores)
        cutoffs = self._protocol.cutoffs("mAP")
        if cutoffs or self._keep_records:
            best = metrics.top(scores, max(TOP, *cutoffs, 1), references)
            if cutoffs:
                self._precisions.append(metrics.average_precision(best, targets, cutoffs))
            if self._keep_records:
                self._record(queries, ranks, best[:, :TOP], references, subsets)

    def ranks(self) -> np.ndarray:
        """Return the ranks of all queries so far, [Q] int64; -1 without a correct image."""
        return np.concatenate([np.empty(0, np.int64), *self._ranks])

    def subset_ranks(self) -> np.ndarray | None:
        """Return the ranks within the subsets, or None where the protocol has none."""
        if not self._protocol.cutoffs("R_subset"):
            return None
        return np.concatenate([np.empty(0, np.int64), *self._subset_ranks])

    def average_precisions(self) -> dict[int, np.ndarray]:
        """Return AP@K of all queries so far by K; empty where the protocol reports none."""
        return {
            k: np.concatenate([np.empty(0), *(p[k] for p in self._precisions)])
            for k in self._protocol.cutoffs("mAP")
        }

    def _average(self, queries: Sequence, scores: jax.Array) -> tuple[list, jax.Array]:
        """Return an annotation's first query and the mean of its scores, annotation by annotation.

        The last annotation waits, as more of its queries may come: its two orders follow one
        another, and a block may end between them.
        """
        waiting, rows = self._waiting
        queries = [*waiting, *queries]
        if rows is not None:
            scores = jnp.concatenate([rows, scores])
        pairs = len(queries) // 2
        for first, second in zip(queries[: 2 * pairs : 2], queries[1::2], strict=True):
            if first.annotation != second.annotation:
                raise ValueError(
                    f"{self._protocol.name}: the two caption orders must follow one another"
                )
        left = queries[2 * pairs :]
        self._waiting = (left, scores[2 * pairs :] if left else None)
        paired = scores[: 2 * pairs].reshape(pairs, 2, scores.shape[1])
        return queries[: 2 * pairs : 2], paired.mean(axis=1)

    def _rank_subsets(self, queries: Sequence, scores: jax.Array) -> list[list[str]]:
        """Rank within each query's subset; return it, best first and without the reference."""
        members = [[i for i in q.subset if i in self._place and i != q.reference] for q in queries]
        width = max(map(len, members), default=0) or 1
        columns = np.zeros((len(queries), width), np.int64)
        for row, images in zip(columns, members, strict=True):
            row[: len(images)] = [self._place[i] for i in images]
        # Padding repeats the gallery's first image; it is taken out of the ranking.
        padding = [list(range(len(images), width)) or [-1] for images in members]
        picked = jnp.take_along_axis(jnp.asarray(scores), jnp.asarray(columns), axis=1)
        targets = [
            [images.index(t) for t in q.targets if t in images] or [-1]
            for q, images in zip(queries, members, strict=True)
        ]
        self._subset_ranks.append(metrics.ranks(picked, targets, padding))
        order = metrics.top(picked, width, padding)
        return [
            [images[i] for i in row if i < len(images)]
            for images, row in zip(members, order, strict=True)
        ]

    def _record(
        self,
        queries: Sequence,
        ranks: np.ndarray,
        best: np.ndarray,
        references: list[int],
        subsets: list[list[str]] | None,
    ) -> None:
        for number, query in enumerate(queries):
            rank = int(ranks[number])
            record = {
                "query": query.id,
                "reference": query.reference,
                "text": list(query.captions),
                "targets": list(query.targets),
                "rank": rank if rank != metrics.NO_TARGET else None,
                "top": [self._gallery[i] for i in best[number] if i != references[number]],
            }
            if subsets is not None:
                record["subset_top"] = subsets[number]
            self.records.append(record)
