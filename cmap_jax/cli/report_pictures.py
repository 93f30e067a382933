"""The pictures of `cmap report`, each with the reason where it cannot be made."""

import argparse
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from cmap_jax.cli.evaluated import protocol_of, split_of

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from cmap_jax.evaluation.results import ProtocolResult
    from cmap_jax.evaluation.results_file import StoredResults
    from cmap_jax.reporting.document import Picture

_COLUMNS = 5  # best images shown of each query
_EXPLAINED = 3  # queries with heat maps


def curves(workdir: str) -> "Picture | str":
    """Return the picture of the run's curves, or why there is none."""
    from cmap_jax.reporting.writing import curves_picture
    from cmap_jax.visualization.curves import panels
    from cmap_jax.workdir.event_files import read_curves

    try:
        curves = read_curves(workdir)
    except ImportError as error:
        return f"There is no picture of the curves: {error}."
    if not panels(curves):
        return "The workdir has no curves: the model was converted, or trained elsewhere."
    return curves_picture(curves)


def grids(
    arguments: argparse.Namespace, datasets: Any, result: "ProtocolResult | str"
) -> "Sequence[Picture] | str":
    """Return pictures of the best, the worst and some random queries, or why there are none."""
    from cmap_jax.evaluation.pictures import (
        choose_queries,
        order_queries,
        queries_grid,
        results_title,
    )
    from cmap_jax.reporting.writing import grid_picture

    if isinstance(result, str):
        return result
    name, count, seed = result.protocol.name, arguments.count, arguments.seed
    chosen = {
        "random": (choose_queries(result, count, seed), f"drawn at random, seed {seed}"),
        "best": (order_queries(result, count, seed, worst=False), "whose right image is first"),
        "worst": (order_queries(result, count, seed, worst=True), "whose right image is last"),
    }
    data = split_of(datasets, name)
    title = results_title(epath.Path(arguments.workdir).absolute().name, result)
    return [
        grid_picture(
            kind,
            queries_grid(of_kind, data.read_image, f"{kind} · {title}", _COLUMNS),
            f"Queries of {name} {which}: reference, text and best images; right ones are framed, "
            "and one further down stands in a column of its own with its rank",
        )
        for kind, (of_kind, which) in chosen.items()
    ]


def shown(
    arguments: argparse.Namespace, datasets: Any, stored: "StoredResults"
) -> "ProtocolResult | str":
    """Return the result, with rankings, whose queries are shown, or why there is none."""
    import dataclasses

    from cmap_jax.evaluation.results_file import read_rankings

    if isinstance(datasets, str):
        return datasets
    name = protocol_of(datasets, arguments.protocol)
    if name not in stored.result.protocols:
        return f"There are no stored results of {name}: leave out --stored to evaluate."
    result = stored.result.protocols[name]
    records = read_rankings(arguments.workdir, result)
    if records is None:
        return "There are no rankings of these results: leave out --stored to evaluate again."
    return dataclasses.replace(result, rankings=records)


def heatmaps(
    arguments: argparse.Namespace,
    config: "ConfigDict",
    datasets: Any,
    result: "ProtocolResult | str",
) -> "Sequence[Picture] | str":
    """Return heat maps of a few of the random queries, or why there are none."""
    from cmap_jax.evaluation.pictures import choose_queries
    from cmap_jax.processing.images import ImageReadError, preprocess_image
    from cmap_jax.reporting.writing import grid_picture
    from cmap_jax.trained import load
    from cmap_jax.visualization.heatmaps import explain
    from cmap_jax.visualization.overlays import overlay_rows, overlay_sheet

    if isinstance(result, str):
        return result
    if config.data.features:
        return "There are no heat maps: the model was evaluated on features, not on pictures."
    data = split_of(datasets, result.protocol.name)
    records = choose_queries(result, arguments.count, arguments.seed)
    # The mean of several references is no picture that a heat map could lie on.
    records = [r for r in records if not r.get("more_references")][:_EXPLAINED]
    pairs = [[data.read_image(i) for i in (r["reference"], r["targets"][0])] for r in records]
    usable = [not any(isinstance(p, ImageReadError) for p in pair) for pair in pairs]
    records, pairs = (list(itertools.compress(x, usable)) for x in (records, pairs))
    if not records:
        return "There are no heat maps: no query shown has one reference and pictures to read."
    trained = load(arguments.workdir)
    references, targets = zip(*pairs, strict=True)
    maps = explain(trained, references, [tuple(r["text"]) for r in records], targets)
    sheets = []
    for number, (record, pair) in enumerate(zip(records, pairs, strict=True)):
        pixels = [preprocess_image(picture, trained.preprocessing) for picture in pair]
        rows = overlay_rows(maps, number, pixels)
        if not rows:
            return "There are no heat maps: the model's encoder has neither maps nor attention."
        query = f"{record['reference']} + {', '.join(record['text'])}"
        text = f"Heat maps of {query}: where the score of {record['targets'][0]} comes from"
        sheets.append(grid_picture(f"heatmap-{number + 1}", overlay_sheet(rows, query), text))
    return sheets
