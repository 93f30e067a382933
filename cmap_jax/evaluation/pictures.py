"""Pictures of results: some queries of an evaluation, each with its best images.

    result = evaluator(variables, data, rankings=True).protocols["shoes"]
    title = results_title("runs/shoes", result)
    records = choose_queries(result, count=8, seed=0)
    save(queries_grid(records, data.read_image, title), "grid.png")

The same records and images give the same bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from cmap_jax.evaluation.results import ProtocolResult
from cmap_jax.visualization.grids import Drawable, ResultRow, results_grid

_COLUMNS = 8  # best images shown of a query


def choose_queries(result: ProtocolResult, count: int, seed: int) -> list[Mapping[str, Any]]:
    """Return the records of random queries, in the order of the rankings.

    Args:
        result: a result with rankings.
        count: number of queries; all of them where there are fewer.
        seed: the same seed draws the same queries.
    """
    rng = np.random.default_rng(seed)
    total = len(result.rankings)
    chosen = rng.choice(total, min(count, total), replace=False)
    return [result.rankings[i] for i in sorted(chosen)]


def order_queries(
    result: ProtocolResult, count: int, seed: int, *, worst: bool
) -> list[Mapping[str, Any]]:
    """Return the records of the queries whose best right image has the lowest or highest rank.

    Among queries of equal rank some are drawn at random, and an annotation is shown once: its
    caption orders often have neighboring ranks.

    Args:
        result: a result with rankings.
        count: number of queries; fewer where there are not so many annotations.
        seed: the same seed draws the same queries.
        worst: whether the highest ranks come first, or the lowest.
    """
    ranked = [record for record in result.rankings if record["rank"] is not None]
    mixed = [ranked[i] for i in np.random.default_rng(seed).permutation(len(ranked))]
    mixed.sort(key=lambda record: record["rank"], reverse=worst)
    once: dict[tuple, Mapping[str, Any]] = {}
    for record in mixed:
        once.setdefault(
            (*references_of(record), frozenset(record["text"]), *record["targets"]), record
        )
    return list(once.values())[:count]


def queries_grid(
    records: Sequence[Mapping[str, Any]],
    read_image: Callable[[str], Drawable],
    title: str,
    columns: int = _COLUMNS,
) -> Image.Image:
    """Draw queries from top to bottom, each with its best images.

    Args:
        records: the queries' records; see `ranking.Ranking`.
        read_image: maps an image's id to the image, or to the error that is drawn instead.
        title: the line on top, such as `results_title`.
        columns: number of best images shown of each query.

    Returns:
        An image of mode "RGB".

    Raises:
        ValueError: no records.
    """
    return results_grid([result_row(record, read_image, columns) for record in records], title)


def references_of(record: Mapping[str, Any]) -> list[str]:
    """Return the ids of a query's references, which are one query together."""
    return [record["reference"], *record.get("more_references", ())]


def result_row(
    record: Mapping[str, Any], read_image: Callable[[str], Drawable], columns: int
) -> ResultRow:
    """Return the row of a grid that shows a query's record; arguments as `queries_grid`."""
    ids = record["top"][:columns]
    return ResultRow(
        reference=read_image(record["reference"]),
        captions=[*record["text"], *(f"and like {i}" for i in references_of(record)[1:])],
        results=[(read_image(i), i in record["targets"]) for i in ids],
        rank=record["rank"],
        names=(record["reference"], *ids),
        tied=record["tied"],
        right=_right_one(record, read_image, columns),
    )


def _right_one(
    record: Mapping[str, Any], read_image: Callable[[str], Drawable], columns: int
) -> tuple[Drawable, str] | None:
    """Return a right image that is not among the first ``columns``, with its rank and id."""
    top, targets = record["top"], record["targets"]
    if record["rank"] is None or not set(top[:columns]).isdisjoint(targets):
        return None
    nearest = next((i for i in top if i in targets), None)
    if nearest is None and len(targets) > 1:
        # A record does not say which of several is the best one beyond its list.
        first = f"1 of {len(targets)}, the best at {record['rank'] + 1:,.0f}"
        return read_image(targets[0]), f"{first} · {targets[0]}"
    image = nearest or targets[0]
    return read_image(image), f"rank {record['rank'] + 1:,.0f} · {image}"


def results_title(model: str, result: ProtocolResult) -> str:
    """Return a title that names the model, the protocol and the recalls, in percent."""
    protocol = result.protocol
    names = dict.fromkeys([*protocol.headline, protocol.headline_name])
    recalls = ", ".join(f"{name} {result.numbers[name]:.2f}" for name in names)
    return f"{model} · {protocol.name} · {recalls}"
