"""Evaluate a trained model on its own data set or another one, and draw some queries.

cmap evaluate runs/fashioniq --shortcuts --grid grid.png
cmap evaluate runs/fashioniq --grid grid.png --protocol fashioniq/val
cmap evaluate runs/cirr --data circo --dir CIRCO --images coco/unlabeled2017
cmap evaluate runs/cirr --data circo --dir CIRCO --captions concept
"""

import argparse
from typing import Any

from etils import epath

from cmap_jax.cli.arguments import path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.cli.evaluated import SPELLING, add_evaluated, config_of, protocol_of, split_of
from cmap_jax.evaluation.pictures import choose_queries, queries_grid, results_title
from cmap_jax.evaluation.results import ProtocolResult
from cmap_jax.protocols import PROTOCOLS
from cmap_jax.visualization.grids import check_destination, save

SPELLING = {**SPELLING, "eval.overlap": "--overlap"}
_ROWS = 8  # default number of queries in a picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument(
        "workdir", type=path, help="the folder of the model; evaluation.json is written there"
    )
    add_evaluated(parser)
    parser.add_argument(
        "--rankings", action="store_true", help="write the first images of each query"
    )
    parser.add_argument(
        "--shortcuts",
        action="store_true",
        help="also measure the text alone and the image alone; later evaluations keep the numbers",
    )
    parser.add_argument(
        "--overlap",
        type=int,
        default=0,
        metavar="N",
        help="also compare the modified and the preserved part, heat maps and attentions, on N "
        "queries of each split; later evaluations keep the numbers",
    )
    parser.add_argument(
        "--grid", metavar="FILE", type=path, help="draw some queries with their first images"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="draw queries of this protocol; default: the first"
    )
    parser.add_argument("--count", type=int, default=_ROWS, help="queries in the picture")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of queries")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, and draw."""
    _check(arguments)
    check_devices()
    # TensorFlow takes seconds to load, hence the imports in here.
    from cmap_jax.cli import run
    from cmap_jax.evaluation.results_file import results_path

    config = config_of(arguments)
    config.eval.rankings = arguments.rankings or bool(arguments.grid)
    config.eval.shortcuts = arguments.shortcuts
    config.eval.overlap = arguments.overlap
    use_compilation_cache(None)
    datasets = run.read_for_evaluation(config, arguments.workdir)
    protocol = protocol_of(datasets, arguments.protocol)  # before the long work
    result = run.evaluate(config, arguments.workdir, datasets)
    step = run.print_results(config, arguments.workdir)
    file = results_path(arguments.workdir, config.data.name)
    print(f"\nAll of it, for cmap compare: {file}")
    if arguments.grid:
        name = epath.Path(arguments.workdir).absolute().name
        model = f"{name} ({config.model.variant}, step {step:,})"
        _draw(result.protocols[protocol], datasets, model, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse impossible arguments before anything is read."""
    if arguments.overlap < 0:
        raise ValueError(f"--overlap must be 0 or more, not {arguments.overlap}")
    if arguments.protocol and not arguments.grid:
        raise ValueError("--protocol says whose queries --grid draws: give --grid FILE too")
    if arguments.protocol and arguments.protocol not in PROTOCOLS:
        raise ValueError(
            f"--protocol: there is none called {arguments.protocol!r}, but {', '.join(PROTOCOLS)}"
        )
    if arguments.grid:
        check_destination(arguments.grid)
        if arguments.count < 1:
            raise ValueError(f"--count must be 1 or more, not {arguments.count}")


def _draw(result: ProtocolResult, datasets: Any, model: str, arguments: argparse.Namespace) -> None:
    """Draw random queries of a protocol with their best images, and say where the picture is."""
    name = result.protocol.name
    data = split_of(datasets, name)
    records = choose_queries(result, arguments.count, arguments.seed)
    save(queries_grid(records, data.read_image, results_title(model, result)), arguments.grid)
    print(f"\n{len(records)} queries under {name} with their first images: {arguments.grid}")
