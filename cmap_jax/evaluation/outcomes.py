"""The rank of each query, and every number that is reported of the ranks.

See docs/method.md, section 6.

A number is defined once, as a function of weighted queries. With a weight of one for each query it
is the result; with the weights of a resample it is one draw of the bootstrap.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmap_jax.protocols import Protocol, split_metric
from cmap_jax.retrieval.positions import NO_TARGET

DRAWS = 2000  # resamples of a bootstrap
CONFIDENCE = (2.5, 97.5)  # percentiles of a 95% interval
_AT_ONCE = 2**22  # weights drawn at once, to bound the memory


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """The ranks of an evaluation's queries that count; all arrays are [Q].

    Attributes:
        groups: number of queries of each category. The arrays hold the categories one after
            another, in this order.
        annotation: int64, number of the annotation that a query comes from.
        rank: float64, expected 0-based rank of the best-ranked correct image; a fraction where
            wrong images have exactly its score.
        subset_rank: float64, the same within the query's subset; None where the protocol has no
            subsets.
        average_precision: float64 in 0..1, by cutoff K; empty where the protocol reports none.
        tied: int64, number of wrong images at exactly the score of the best correct one; None
            stands for zeros.
        skipped: number of queries that do not count, having no correct image in the gallery.
        wrong: float64 in 0..1, share of explicit wrong images among the first K, by cutoff K; NaN
            for a query that has none; empty where the protocol reports no such share.
        several: bool, whether a query has several references; None stands for False.
    """

    groups: Mapping[str, int]
    annotation: np.ndarray
    rank: np.ndarray
    subset_rank: np.ndarray | None = None
    average_precision: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    tied: np.ndarray | None = None
    skipped: int = 0
    wrong: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    several: np.ndarray | None = None

    def __post_init__(self):
        """Replace ``tied=None`` and ``several=None`` by zeros."""
        for name, kind in (("tied", np.int64), ("several", bool)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.rank), kind))

    @classmethod
    def collect(
        cls,
        categories: Sequence[str],
        annotations: Sequence[str],
        rank: np.ndarray,
        subset_rank: np.ndarray | None,
        average_precision: Mapping[int, np.ndarray],
        tied: np.ndarray | None = None,
        wrong: Mapping[int, np.ndarray] | None = None,
        several: np.ndarray | None = None,
    ) -> "Outcomes":
        """Build outcomes of all queries; those of rank -1 are counted as skipped and left out.

        Args:
            categories: [B], the queries of each category one after another.
            annotations: [B], ids.
            rank: [B] float64, -1 for a query without a correct image.
            subset_rank: [B] float64, or None.
            average_precision: [B] float64, by cutoff K.
            tied: [B] int64, or None for zeros.
            wrong: [B] float64, by cutoff K; None for no cutoff.
            several: [B] bool, or None for False.
        """
        counts = rank != NO_TARGET
        kept = np.asarray(categories, dtype=object)[counts]
        names = list(dict.fromkeys(kept))
        ids = np.asarray(annotations, dtype=str)[counts]
        return cls(
            groups={name: int((kept == name).sum()) for name in names},
            annotation=np.unique(ids, return_inverse=True)[1],
            rank=rank[counts],
            subset_rank=None if subset_rank is None else subset_rank[counts],
            average_precision={k: values[counts] for k, values in average_precision.items()},
            tied=None if tied is None else tied[counts],
            skipped=int((~counts).sum()),
            wrong={k: values[counts] for k, values in (wrong or {}).items()},
            several=None if several is None else several[counts],
        )

    def __len__(self) -> int:
        """Return the number of queries, Q."""
        return len(self.rank)

    def values(self, metric: str) -> np.ndarray:
        """Return each query's contribution to a metric, in percent, [Q] float64.

        It is NaN for a query that does not count in the metric.
        """
        kind, k = split_metric(metric)
        if kind == "mAP":
            return 100.0 * self.average_precision[k]
        if kind == "mAP_multi":
            return np.where(self.several, 100.0 * self.average_precision[k], np.nan)
        if kind == "wrong":
            return 100.0 * self.wrong[k]
        if kind == "spread":
            return 100.0 * self._spreads(self.average_precision[k])
        ranks = self.rank if kind == "R" else self.subset_rank
        return 100.0 * ((ranks >= 0) & (ranks < k))

    def _spreads(self, values: np.ndarray) -> np.ndarray:
        """Return the range of values, [Q], over each annotation's queries, at its first query.

        All other queries have NaN, and so have those of annotations with one query: each annotation
        counts once. Resamples weight the queries of an annotation alike.
        """
        _, first, group, counts = np.unique(
            self.annotation, return_index=True, return_inverse=True, return_counts=True
        )
        high, low = np.full((2, len(first)), [[-np.inf], [np.inf]])
        np.maximum.at(high, group, values)
        np.minimum.at(low, group, values)
        spreads = np.full(len(values), np.nan)
        spreads[first] = np.where(counts > 1, high - low, np.nan)
        return spreads

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
            **(
                {"wrong": {str(k): _to_json(v) for k, v in self.wrong.items()}}
                if self.wrong
                else {}
            ),
            **({"several": self.several.tolist()} if self.several.any() else {}),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Outcomes":
        """Build outcomes from the result of `to_dict`.

        Results of earlier versions have no ties. They can be read all the same, because a
        comparison refuses them by the name of their protocol.

        Raises:
            KeyError, TypeError, ValueError: the fields have another form; a list has another number
                of entries than there are queries, or an entry that is no rank, precision or count.
        """
        subset = fields["subset_rank"]
        tied, several = fields.get("tied"), fields.get("several")
        precisions = fields["average_precision"].items()
        outcomes = cls(
            groups=fields["groups"],
            annotation=np.asarray(fields["annotation"], np.int64),
            rank=np.asarray(fields["rank"], np.float64),
            subset_rank=None if subset is None else np.asarray(subset, np.float64),
            average_precision={int(k): np.asarray(v, np.float64) for k, v in precisions},
            tied=None if tied is None else np.asarray(tied, np.int64),
            skipped=fields["skipped"],
            wrong={int(k): np.asarray(v, np.float64) for k, v in fields.get("wrong", {}).items()},
            several=None if several is None else np.asarray(several, bool),
        )
        outcomes._check()
        return outcomes

    def _check(self) -> None:
        """Refuse lists of different lengths, and numbers that no evaluation gives."""
        lists = {"annotation": self.annotation, "rank": self.rank, "tied": self.tied}
        if self.subset_rank is not None:
            lists["subset_rank"] = self.subset_rank
        lists |= {f"average_precision {k}": v for k, v in self.average_precision.items()}
        lists |= {f"wrong {k}": v for k, v in self.wrong.items()}
        lists |= {"several": self.several}
        count = sum(self.groups.values())
        for name, values in lists.items():
            if values.shape != (count,):
                raise ValueError(f"{name} has {len(values)} entries for {count} queries")
            # A query outside its subset has a subset rank below zero.
            least = -np.inf if name == "subset_rank" else 0
            most = 1 if name.startswith(("average_precision", "wrong")) else np.inf
            wrong = ~(np.isfinite(values) & (values >= least) & (values <= most))
            if name.startswith("wrong"):  # NaN for a query without explicit wrong images
                wrong &= ~np.isnan(values)
            if wrong.any():
                raise ValueError(f"{name} has {values[wrong][0]} at position {wrong.argmax()}")


def statistics(
    protocol: Protocol, outcomes: Outcomes, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every number of a protocol for each row of weights.

    Args:
        protocol: the rules, which name the metrics and the averaging.
        outcomes: the ranks of Q queries.
        weights: [R, Q], the number of times that each query counts.

    Returns:
        [R] float64 by name, in percent: the headline, each metric and, where the protocol averages
        over categories, ``<category>/<metric>``. Ranks, counted from 1: ``median_rank``
        (floor(median) + 1) and ``mean_rank`` (mean + 1). A metric is NaN where no query of some
        category counts in it.
    """
    by_category = protocol.averaging == "categories"
    groups = outcomes.groups if by_category else {"all": len(outcomes)}
    values = np.stack([outcomes.values(m) for m in protocol.metrics], axis=1)  # [Q, M]
    means, start = {}, 0
    for name, count in groups.items():
        rows = slice(start, start + count)
        start = rows.stop
        means[name] = _means(values[rows], weights[:, rows])  # [R, M]
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


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted means of the columns of values, [Q, M], by weights, [R, Q] -> [R, M].

    NaN takes no part; the mean of nothing is NaN.
    """
    counts = ~np.isnan(values)
    totals = weights @ counts
    sums = weights @ np.where(counts, values, 0.0)
    return np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)


def _to_json(values: np.ndarray) -> list[float | None]:
    """Return a list for JSON, which has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def summarize(protocol: Protocol, outcomes: Outcomes) -> dict[str, float | int]:
    """Return the numbers that a protocol reports: `statistics` and counts of queries.

    See docs/method.md, section 6.

    Where the best correct image of some queries has exactly the score of a wrong one,
    ``tied_queries`` is the share of these queries, in percent. A metric in which no query counts is
    absent.

    Raises:
        ValueError: no query counts.
    """
    if not len(outcomes):
        raise ValueError(f"{protocol.name}: no query has a correct image in its gallery")
    numbers = statistics(protocol, outcomes, np.ones((1, len(outcomes))))
    summary: dict[str, float | int] = {
        name: float(value[0]) for name, value in numbers.items() if not np.isnan(value[0])
    }
    summary["median_rank"] = int(summary["median_rank"])
    tied = 100.0 * float((outcomes.tied > 0).mean())
    if tied:
        summary["tied_queries"] = tied
    return {**summary, "queries": len(outcomes), "skipped": outcomes.skipped}


def bootstrap_intervals(
    protocol: Protocol, outcomes: Outcomes, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of every number, by resampling annotations.

    An annotation's queries are drawn together, because they are not independent. Each category is
    resampled by itself and keeps its number of annotations.
    """
    draws = draw_statistics(protocol, [outcomes], seed)[0]
    return intervals(draws)


def bootstrap_differences(
    protocol: Protocol, first: Outcomes, second: Outcomes, *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of second minus first for every number, by a paired bootstrap.

    Raises:
        ValueError: the outcomes are not of the same queries.
    """
    if dict(first.groups) != dict(second.groups) or not np.array_equal(
        first.annotation, second.annotation
    ):
        raise ValueError(f"{protocol.name}: the two results count different queries")
    a, b = draw_statistics(protocol, [first, second], seed)
    return intervals({name: b[name] - a[name] for name in a})


def intervals(draws: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of each number's draws, without those in which no query counted.

    A number over no query has none.

    Args:
        draws: by number, its value in each resample, [DRAWS]; NaN where no query counted.
    """
    by_number = {}
    for name, values in draws.items():
        if not np.isnan(values).all():
            low, high = np.nanpercentile(values, CONFIDENCE)
            by_number[name] = float(low), float(high)
    return by_number


def draw_statistics(
    protocol: Protocol, all_outcomes: Sequence[Outcomes], seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Return the draws of every number, [DRAWS] each, for several outcomes of the same queries.

    Outcomes of the same queries are resampled alike under the same seed, in one call or in several.
    """
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
    """Return the number of times that each query counts in each draw, [draws, Q]."""
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
    """Return the weighted medians of values, [Q], for each row of weights, [R, Q] -> [R]."""
    order = np.argsort(values, kind="stable")
    values, up_to = values[order], np.cumsum(weights[:, order], axis=1)
    total = up_to[:, -1]

    def at(position: np.ndarray) -> np.ndarray:
        return values[(up_to <= position[:, None]).sum(axis=1)]

    return (at((total - 1) // 2) + at(total // 2)) / 2
