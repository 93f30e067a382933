"""What became of each query, and every number that is reported of it (SPEC 6).

A number is defined once, as a function of weighted queries: with weight one for each it is the
result, with the weights of a resample it is one draw of the bootstrap.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmap_jax.protocols import Protocol, split_metric
from cmap_jax.retrieval.positions import NO_TARGET

DRAWS = 2000  # of a bootstrap
CONFIDENCE = (2.5, 97.5)  # percentiles: 95%
_AT_ONCE = 2**22  # weights drawn at once


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """What became of the queries of one evaluation, those that count; all arrays are [Q].

    Attributes:
        groups: number of queries of each category; their queries follow one another.
        annotation: int, which annotation a query comes from; numbered within the evaluation.
        rank: float64, 0-based, expected rank of the best-ranked correct image; a fraction where
            wrong images have exactly its score.
        subset_rank: float64, as ``rank`` among the query's subset; None where the protocol has
            none.
        average_precision: by K, in 0..1; empty where the protocol reports none.
        tied: int, number of wrong images at exactly the score of the best correct one; None: there
            are none.
        skipped: queries that do not count, having no correct image in the gallery.
    """

    groups: Mapping[str, int]
    annotation: np.ndarray
    rank: np.ndarray
    subset_rank: np.ndarray | None = None
    average_precision: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    tied: np.ndarray | None = None
    skipped: int = 0

    def __post_init__(self):
        """Fill in that nothing is tied."""
        if self.tied is None:
            object.__setattr__(self, "tied", np.zeros(len(self.rank), np.int64))

    @classmethod
    def collect(
        cls,
        categories: Sequence[str],
        annotations: Sequence[str],
        rank: np.ndarray,
        subset_rank: np.ndarray | None,
        average_precision: Mapping[int, np.ndarray],
        tied: np.ndarray | None = None,
    ) -> "Outcomes":
        """Build from rows for all queries, grouped by category; leaves out those of rank -1."""
        counts = rank != NO_TARGET
        kept = np.asarray(categories, dtype=object)[counts]
        names = list(dict.fromkeys(kept))
        return cls(
            {name: int((kept == name).sum()) for name in names},
            np.unique(np.asarray(annotations, dtype=str)[counts], return_inverse=True)[1],
            rank[counts],
            None if subset_rank is None else subset_rank[counts],
            {k: values[counts] for k, values in average_precision.items()},
            None if tied is None else tied[counts],
            int((~counts).sum()),
        )

    def __len__(self) -> int:
        """Return the number of queries, Q."""
        return len(self.rank)

    def values(self, metric: str) -> np.ndarray:
        """Return each query's contribution to a metric, in percent, [Q] float64."""
        kind, k = split_metric(metric)
        if kind == "mAP":
            return 100.0 * self.average_precision[k]
        ranks = self.rank if kind == "R" else self.subset_rank
        return 100.0 * ((ranks >= 0) & (ranks < k))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for JSON."""
        return {
            "groups": dict(self.groups),
            "annotation": self.annotation.tolist(),
            "rank": self.rank.tolist(),
            "tied": self.tied.tolist(),
            "subset_rank": None if self.subset_rank is None else self.subset_rank.tolist(),
            "average_precision": {str(k): v.tolist() for k, v in self.average_precision.items()},
            "skipped": self.skipped,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Outcomes":
        """Build from `to_dict`'s result.

        Results of earlier versions did not count ties. They are read, so that they can be refused
        by the name of their protocol.
        """
        subset = fields["subset_rank"]
        tied = fields.get("tied")
        return cls(
            fields["groups"],
            np.asarray(fields["annotation"], np.int64),
            np.asarray(fields["rank"], np.float64),
            None if subset is None else np.asarray(subset, np.float64),
            {int(k): np.asarray(v, np.float64) for k, v in fields["average_precision"].items()},
            None if tied is None else np.asarray(tied, np.int64),
            fields["skipped"],
        )


def statistics(
    protocol: Protocol, outcomes: Outcomes, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every number of a protocol for each row of weights.

    Args:
        protocol: gives the metrics and the averaging.
        outcomes: of Q queries.
        weights: [R, Q], how often each query counts.

    Returns:
        [R] float64 each: the headline, each metric and, with categories, ``<category>/<metric>``,
        in percent; ``median_rank`` (floor(median) + 1) and ``mean_rank`` (mean + 1).
    """
    by_category = protocol.averaging == "categories"
    groups = outcomes.groups if by_category else {"all": len(outcomes)}
    values = np.stack([outcomes.values(m) for m in protocol.metrics], axis=1)  # [Q, M]
    means, start = {}, 0
    for name, count in groups.items():
        rows = slice(start, start + count)
        start = rows.stop
        total = weights[:, rows].sum(axis=1, keepdims=True)
        means[name] = weights[:, rows] @ values[rows] / total  # [R, M]
    overall = np.mean(list(means.values()), axis=0)
    metrics = {m: overall[:, i] for i, m in enumerate(protocol.metrics)}
    headline = np.mean([metrics[m] for m in protocol.headline], axis=0)
    return {
        protocol.headline_name: headline,
        **metrics,
        **(
            {
                f"{name}/{m}": mean[:, i]
                for name, mean in means.items()
                for i, m in enumerate(protocol.metrics)
            }
            if by_category
            else {}
        ),
        "median_rank": np.floor(_median(outcomes.rank, weights)) + 1,
        "mean_rank": weights @ outcomes.rank / weights.sum(axis=1) + 1,
    }


def summarize(protocol: Protocol, outcomes: Outcomes) -> dict[str, float | int]:
    """Return what a protocol reports (SPEC 6): `statistics`, and how many queries there were.

    Where the best correct image of some queries has exactly the score of a wrong one,
    ``tied_queries`` is the share of these queries, in percent.

    Raises:
        ValueError: no query counts.
    """
    if not len(outcomes):
        raise ValueError(f"{protocol.name}: no query has a correct image in its gallery")
    numbers = statistics(protocol, outcomes, np.ones((1, len(outcomes))))
    found: dict[str, float | int] = {name: float(value[0]) for name, value in numbers.items()}
    found["median_rank"] = int(found["median_rank"])
    tied = 100.0 * float((outcomes.tied > 0).mean())
    if tied:
        found["tied_queries"] = tied
    return {**found, "queries": len(outcomes), "skipped": outcomes.skipped}


def bootstrap_intervals(
    protocol: Protocol, outcomes: Outcomes, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of every number, by resampling annotations.

    An annotation's queries are drawn together: they are not independent. Categories are resampled
    one by one, so that each keeps its size.
    """
    draws = _draw_statistics(protocol, [outcomes], seed)[0]
    return {name: _interval(values) for name, values in draws.items()}


def bootstrap_differences(
    protocol: Protocol, first: Outcomes, second: Outcomes, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of second minus first, number by number; both see the same draws.

    Raises:
        ValueError: the outcomes are not of the same queries.
    """
    if dict(first.groups) != dict(second.groups) or not np.array_equal(
        first.annotation, second.annotation
    ):
        raise ValueError(f"{protocol.name}: the two results count different queries")
    a, b = _draw_statistics(protocol, [first, second], seed)
    return {name: _interval(b[name] - a[name]) for name in a}


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, CONFIDENCE)
    return float(low), float(high)


def _draw_statistics(
    protocol: Protocol, all_outcomes: Sequence[Outcomes], seed: int
) -> list[dict[str, np.ndarray]]:
    """Return all draws of each of some outcomes of the same queries, [DRAWS] each."""
    rng = np.random.default_rng(seed)
    like = all_outcomes[0]
    at_once = max(1, min(DRAWS, _AT_ONCE // len(like)))
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in all_outcomes]
    for start in range(0, DRAWS, at_once):
        weights = _draw_weights(like, min(at_once, DRAWS - start), rng)
        for part, outcomes in zip(parts, all_outcomes, strict=True):
            part.append(statistics(protocol, outcomes, weights))
    return [{name: np.concatenate([p[name] for p in part]) for name in part[0]} for part in parts]


def _draw_weights(outcomes: Outcomes, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each query counts in each draw, [draws, Q]."""
    blocks, start = [], 0
    for count in outcomes.groups.values():
        rows = slice(start, start + count)
        start = rows.stop
        known, index = np.unique(outcomes.annotation[rows], return_inverse=True)
        drawn = rng.integers(len(known), size=(draws, len(known)))
        drawn += np.arange(draws)[:, None] * len(known)
        times = np.bincount(drawn.ravel(), minlength=draws * len(known)).reshape(draws, -1)
        blocks.append(times[:, index])
    return np.concatenate(blocks, axis=1).astype(np.float64)


def _median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the median of values that count several times, [Q] and [R, Q] -> [R]."""
    order = np.argsort(values, kind="stable")
    values, up_to = values[order], np.cumsum(weights[:, order], axis=1)
    total = up_to[:, -1]

    def at(position: np.ndarray) -> np.ndarray:
        return values[(up_to <= position[:, None]).sum(axis=1)]

    return (at((total - 1) // 2) + at(total // 2)) / 2
