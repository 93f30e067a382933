"""The queries of one evaluation and category are searched for and become outcomes and rankings."""

import dataclasses
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from cmap_jax import scoring
from cmap_jax.evaluation import metrics
from cmap_jax.protocols import Protocol
from cmap_jax.retrieval.exact import NO_PADDING, ExactIndex, Padding
from cmap_jax.retrieval.placement import Placement, place_among
from cmap_jax.retrieval.positions import NO_TARGET
from cmap_jax.scoring import ComposedQuery

TOP = 50  # images a query in the rankings


class Ranking:
    """Ranks the queries of a category, block by block.

    Attributes:
        annotations: annotation of each query ranked so far.
        records: a record a query, where they are kept: "query", "reference", "text", "targets",
            "rank" (0-based, a real number, see `retrieval.placement`; None without a correct image
            in the gallery), "tied" (number of wrong images at exactly the score of the best correct
            one), "top" (ids, by score and then by position in the gallery) and, where queries have
            subsets, "subset_top".
    """

    def __init__(
        self,
        protocol: Protocol,
        gallery: Sequence[str],
        *,
        keep_records: bool,
        examples: Set[str] = frozenset(),
        padding: Padding = NO_PADDING,
    ):
        """Start with no query.

        Args:
            protocol: the rules.
            gallery: image ids, in the order of the index.
            keep_records: whether to make `records` of all queries.
            examples: ids of queries of which records are made in any case.
            padding: sizes that every search is filled up to, before orders are averaged.
        """
        self._protocol = protocol
        self._gallery = gallery
        self._place = {image: i for i, image in enumerate(gallery)}
        self._keep_records = keep_records
        self._examples = examples
        if protocol.captions == "averaged":
            padding = dataclasses.replace(padding, queries=-(-padding.queries // 2))
        self._padding = padding
        self._placements: list[Placement] = []
        self._subset_ranks: list[np.ndarray] = []
        self._precisions: list[dict[int, np.ndarray]] = []
        self.annotations: list[str] = []
        self.records: list[dict[str, Any]] = []

    def add(self, queries: Sequence, composed: ComposedQuery, index: ExactIndex) -> None:
        """Rank the next queries.

        Args:
            queries: what they are, B records; under the caption policy "averaged" the two orders of
                each annotation, one behind the other.
            composed: the same queries, to be scored.
            index: the gallery.

        Raises:
            ValueError: the orders of an annotation do not follow one another, or a score is NaN.
        """
        if self._protocol.captions == "averaged":
            queries, composed = self._average(queries, composed)
        place = self._place
        targets = [[place[t] for t in q.targets if t in place] for q in queries]
        exclude = self._protocol.reference == "excluded"
        references = [place.get(q.reference, -1) if exclude else -1 for q in queries]
        cutoffs = self._protocol.cutoffs("mAP")
        recorded = [self._keep_records or query.id in self._examples for query in queries]
        count = TOP if any(recorded) else 0
        found = index.search(
            composed,
            count,
            targets=targets,
            exclude=references,
            every_target=bool(cutoffs),
            padding=self._padding,
        )
        if cutoffs:
            self._precisions.append(metrics.average_precision(found.placements, cutoffs))
        placement = found.placements.best()
        self._placements.append(placement)
        self.annotations += [q.annotation for q in queries]
        subsets = None
        if self._protocol.cutoffs("R_subset"):
            subsets = self._rank_subsets(queries, composed, index)
        if count:
            self._record(
                queries, recorded, placement, found.positions[:, :TOP], references, subsets
            )

    def placement(self) -> Placement:
        """Return where the best correct image of each query so far stands, [Q]."""
        return Placement.concatenate(self._placements)

    def subset_ranks(self) -> np.ndarray | None:
        """Return the ranks within the subsets, or None where the protocol has none."""
        if not self._protocol.cutoffs("R_subset"):
            return None
        return np.concatenate([np.empty(0), *self._subset_ranks])

    def average_precisions(self) -> dict[int, np.ndarray]:
        """Return AP@K of all queries so far by K; empty where the protocol reports none."""
        return {
            k: np.concatenate([np.empty(0), *(p[k] for p in self._precisions)])
            for k in self._protocol.cutoffs("mAP")
        }

    def _average(
        self, queries: Sequence, composed: ComposedQuery
    ) -> tuple[Sequence, ComposedQuery]:
        """Return an annotation's first query, and queries with the mean of both orders' scores."""
        firsts, seconds = queries[::2], queries[1::2]
        if [q.annotation for q in firsts] != [q.annotation for q in seconds]:
            raise ValueError(
                f"{self._protocol.name}: the two caption orders must follow one another"
            )
        orders = (scoring.take(composed, slice(start, None, 2)) for start in (0, 1))
        return firsts, scoring.average(*orders)

    def _rank_subsets(
        self, queries: Sequence, composed: ComposedQuery, index: ExactIndex
    ) -> list[list[str]]:
        """Rank within each query's subset; return it without the reference.

        The order is by score, then by position in the gallery, as in every list of results.
        """
        members = [
            sorted({i for i in q.subset if i in self._place} - {q.reference}, key=self._place.get)
            for q in queries
        ]
        width = max(map(len, members), default=0) or 1
        columns = np.full((len(queries), width), -1, np.int32)
        for row, images in zip(columns, members, strict=True):
            row[: len(images)] = [self._place[i] for i in images]
        # Padding scores -inf and comes last.
        scores = index.scores_at(composed, columns, self._padding)
        correct = np.zeros(columns.shape, bool)
        for row, images, query in zip(correct, members, queries, strict=True):
            row[: len(images)] = np.isin(images, query.targets)
        wrong = (columns >= 0) & ~correct
        self._subset_ranks.append(place_among(scores, correct, wrong).ranks())
        order = np.argsort(-scores, axis=1, kind="stable")
        return [
            [images[i] for i in row[: len(images)]]
            for images, row in zip(members, order, strict=True)
        ]

    def _record(
        self,
        queries: Sequence,
        recorded: Sequence[bool],
        placement: Placement,
        best: np.ndarray,
        references: list[int],
        subsets: list[list[str]] | None,
    ) -> None:
        ranks = placement.ranks()
        for number in np.flatnonzero(recorded):
            query = queries[number]
            record = {
                "query": query.id,
                "reference": query.reference,
                "text": list(query.captions),
                "targets": list(query.targets),
                "rank": _to_json(ranks[number]),
                "tied": int(placement.tied[number]),
                "top": [self._gallery[i] for i in best[number] if i != references[number]],
            }
            if subsets is not None:
                record["subset_top"] = subsets[number]
            self.records.append(record)


def _to_json(rank: float) -> int | float | None:
    """Return a rank as it is written: a whole number, with which scripts index lists, as an int."""
    if rank == NO_TARGET:
        return None
    return int(rank) if float(rank).is_integer() else float(rank)
