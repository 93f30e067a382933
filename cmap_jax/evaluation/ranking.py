"""The ranks and the best images of the queries of one evaluation and category."""

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

TOP = 50  # best images in a query's record


class Ranking:
    """Ranks the queries of a category, block by block.

    Attributes:
        annotations: the annotation of each query ranked so far.
        records: a record of each query for which it was asked, JSON values by name: "query",
            "reference", "text", "targets", "rank" (0-based, a real number, see
            `retrieval.placement`; None without a correct image in the gallery), "tied" (number of
            wrong images at exactly the score of the best correct one), "top" (ids of the best
            images, by score and then by position in the gallery) and, where queries have them,
            "subset_top", "more_references" and "wrong" (ids).
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
            keep_records: whether all queries are recorded.
            examples: ids of queries that are recorded in any case.
            padding: sizes to which every search is padded, counted before caption orders are
                averaged.
        """
        self._protocol = protocol
        self._gallery = gallery
        self._positions = {image: i for i, image in enumerate(gallery)}
        self._keep_records = keep_records
        self._examples = examples
        if protocol.captions == "averaged":
            padding = dataclasses.replace(padding, queries=-(-padding.queries // 2))
        self._padding = padding
        self._placements: list[Placement] = []
        self._subset_ranks: list[np.ndarray] = []
        self._precisions: list[dict[int, np.ndarray]] = []
        self._wrong: list[dict[int, np.ndarray]] = []
        self._several: list[bool] = []
        self.annotations: list[str] = []
        self.records: list[dict[str, Any]] = []

    def add(self, queries: Sequence, composed: ComposedQuery, index: ExactIndex) -> None:
        """Rank the next queries.

        Args:
            queries: B queries as the data set states them. Under the caption policy "averaged" the
                two caption orders of an annotation are neighbours.
            composed: embeddings of the same queries.
            index: the gallery.

        Raises:
            ValueError: the caption orders of an annotation are not neighbours, or a score is NaN.
        """
        if self._protocol.captions == "averaged":
            queries, composed = self._average(queries, composed)
        positions = self._positions
        targets = [[positions[t] for t in q.targets if t in positions] for q in queries]
        exclude = self._protocol.reference == "excluded"
        references = [
            [positions[r] for r in q.references if r in positions] if exclude else []
            for q in queries
        ]
        cutoffs = self._protocol.cutoffs("mAP")
        recorded = [self._keep_records or query.id in self._examples for query in queries]
        count = TOP if any(recorded) else 0
        hits = index.search(
            composed,
            count,
            targets=targets,
            exclude=references,
            every_target=bool(cutoffs),
            padding=self._padding,
        )
        if cutoffs:
            self._precisions.append(metrics.average_precision(hits.placements, cutoffs))
        placement = hits.placements.best()
        self._placements.append(placement)
        self.annotations += [q.annotation for q in queries]
        self._several += [len(q.references) > 1 for q in queries]
        if self._protocol.cutoffs("wrong"):
            self._wrong.append(self._wrong_shares(queries, composed, index, references))
        subsets = None
        if self._protocol.cutoffs("R_subset"):
            subsets = self._rank_subsets(queries, composed, index)
        if count:
            self._record(
                queries=queries,
                recorded=recorded,
                placement=placement,
                best=hits.positions[:, :TOP],
                references=references,
                subsets=subsets,
            )

    def placement(self) -> Placement:
        """Return the placement of each query's best correct image so far, [Q]."""
        return Placement.concatenate(self._placements)

    def subset_ranks(self) -> np.ndarray | None:
        """Return the ranks within the subsets so far, [Q], or None where there are no subsets."""
        if not self._protocol.cutoffs("R_subset"):
            return None
        return np.concatenate([np.empty(0), *self._subset_ranks])

    def average_precisions(self) -> dict[int, np.ndarray]:
        """Return AP@K of all queries so far, [Q] by K; empty where the protocol reports none."""
        return {
            k: np.concatenate([np.empty(0), *(p[k] for p in self._precisions)])
            for k in self._protocol.cutoffs("mAP")
        }

    def wrong_shares(self) -> dict[int, np.ndarray]:
        """Return the shares of explicit wrong images so far, [Q] by K; see `metrics.wrong_share`.

        Empty where the protocol reports none.
        """
        return {
            k: np.concatenate([np.empty(0), *(w[k] for w in self._wrong)])
            for k in self._protocol.cutoffs("wrong")
        }

    def several_references(self) -> np.ndarray:
        """Tell which queries so far have several references, [Q] bool."""
        return np.array(self._several, bool)

    def _wrong_shares(
        self,
        queries: Sequence,
        composed: ComposedQuery,
        index: ExactIndex,
        references: list[list[int]],
    ) -> dict[int, np.ndarray]:
        """Place the explicit wrong images as a search places correct ones; see `wrong_shares`."""
        cutoffs, positions = self._protocol.cutoffs("wrong"), self._positions
        wrong = [
            [positions[i] for i in q.wrong if i in positions and positions[i] not in excluded]
            for q, excluded in zip(queries, references, strict=True)
        ]
        if not any(wrong):
            return {k: np.full(len(queries), np.nan) for k in cutoffs}
        hits = index.search(
            composed,
            0,
            targets=wrong,
            exclude=references,
            every_target=True,
            padding=self._padding,
        )
        ranked = np.array([len(self._gallery) - len(set(excluded)) for excluded in references])
        return metrics.wrong_share(hits.placements, ranked, cutoffs)

    def _average(
        self, queries: Sequence, composed: ComposedQuery
    ) -> tuple[Sequence, ComposedQuery]:
        """Return each annotation's first query, and queries that score the mean of both orders."""
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
        """Rank within each query's subset, and return the subsets without the reference, sorted.

        The order is by score, then by position in the gallery, as in every list of results.
        """
        positions = self._positions
        members = [
            sorted(
                {i for i in q.subset if i in positions}.difference(q.references), key=positions.get
            )
            for q in queries
        ]
        width = max(map(len, members), default=0) or 1
        columns = np.full((len(queries), width), -1, np.int32)
        for row, images in zip(columns, members, strict=True):
            row[: len(images)] = [positions[i] for i in images]
        # The padding has a score of -inf and comes last.
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
        references: list[list[int]],
        subsets: list[list[str]] | None,
    ) -> None:
        """Append a record of each query for which ``recorded`` is true."""
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
                "top": [self._gallery[i] for i in best[number] if i not in references[number]],
            }
            extra = {"more_references": query.more_references, "wrong": query.wrong}
            record |= {name: list(ids) for name, ids in extra.items() if ids}
            if subsets is not None:
                record["subset_top"] = subsets[number]
            self.records.append(record)


def _to_json(rank: float) -> int | float | None:
    """Return a rank for JSON: a whole number as an int, which scripts can index lists with."""
    if rank == NO_TARGET:
        return None
    return int(rank) if float(rank).is_integer() else float(rank)
