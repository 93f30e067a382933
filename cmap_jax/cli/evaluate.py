"""Evaluate a trained model, on its own data set or another one, and draw what it finds.

cmap evaluate runs/fashioniq --shortcuts --grid grid.png
cmap evaluate runs/cirr --data circo --dir CIRCO --images coco/unlabeled2017
"""

import argparse
from typing import Any

import numpy as np

from cmap_jax.cli import tables
from cmap_jax.cli.arguments import add_near_names, path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.visualization.grids import ResultRow, check_destination, results_grid, save

_COLUMNS = 8  # results a query in a picture
_ROWS = 8  # queries in a picture, by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "workdir", type=path, help="the folder of the model; evaluation.json is written there"
    )
    parser.add_argument("--data", metavar="NAME", help="another data set than the model's own")
    parser.add_argument("--dir", metavar="DIR", type=path, help="the folder with its annotations")
    parser.add_argument(
        "--images", metavar="DIR", type=path, help="the folder with its images, if elsewhere"
    )
    add_near_names(parser, default=None)
    parser.add_argument("--rankings", action="store_true", help="write each query's first images")
    parser.add_argument(
        "--shortcuts", action="store_true", help="also the text alone and the image alone"
    )
    parser.add_argument(
        "--grid", metavar="FILE", type=path, help="draw some queries and what they find"
    )
    parser.add_argument("--count", type=int, default=_ROWS, help="queries in the picture")
    parser.add_argument("--seed", type=int, default=0, help="which queries are drawn")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, and draw."""
    if arguments.grid:
        check_destination(arguments.grid)
        if arguments.count < 1:
            raise ValueError(f"--count must be 1 or more, not {arguments.count}")
    # Only here: TensorFlow takes seconds to load.
    from cmap_jax import workdir as workdir_lib
    from cmap_jax.cli.run import evaluate
    from configs import from_workdir
    from input_pipeline.readers import data_set_name

    workdir_lib.read_description(arguments.workdir)  # refuses what is no workdir, with the reason
    config = from_workdir.get_config(arguments.workdir)
    if arguments.data:
        from_workdir.use_data_set(config, data_set_name(arguments.data))
    if arguments.dir:
        config.data.directory = arguments.dir
    if arguments.images:
        config.data.image_directory = arguments.images
    if arguments.near_names:
        config.data.near_names = arguments.near_names
    config.eval.rankings = arguments.rankings or bool(arguments.grid)
    config.eval.shortcuts = arguments.shortcuts
    use_compilation_cache(None)
    result, datasets = evaluate(config, arguments.workdir)
    print(tables.results(workdir_lib.read_results(arguments.workdir, config.data.name)))
    file = workdir_lib.results_file(arguments.workdir, config.data.name)
    print(f"\nAll of it, for cmap compare: {file}")
    if arguments.grid:
        _draw(result, datasets, arguments)
    return 0


def _draw(result: Any, datasets: Any, arguments: argparse.Namespace) -> None:
    """Draw random queries of the first protocol with their best images."""
    protocol, records = next(iter(result.rankings.items()))
    data = next(
        data
        for data in datasets.evaluations.values()
        if any(e.protocol.name == protocol for e in data.evaluations)
    )
    rng = np.random.default_rng(arguments.seed)
    chosen = rng.choice(len(records), min(arguments.count, len(records)), replace=False)
    rows = []
    for record in (records[i] for i in sorted(chosen)):
        ids = record["top"][:_COLUMNS]
        rows.append(
            ResultRow(
                data.read_image(record["reference"]),
                record["text"],
                [(data.read_image(i), i in record["targets"]) for i in ids],
                record["rank"],
                names=(record["reference"], *ids),
            )
        )
    save(results_grid(rows, protocol), arguments.grid)
    print(f"\n{len(rows)} queries under {protocol} with their first images: {arguments.grid}")
