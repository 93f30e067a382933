"""Evaluate a trained model, on its own data set or another one, and draw what it finds.

cmap evaluate runs/fashioniq --shortcuts --grid grid.png
cmap evaluate runs/fashioniq --grid grid.png --protocol fashioniq/val
cmap evaluate runs/cirr --data circo --dir CIRCO --images coco/unlabeled2017
"""

import argparse
from typing import Any

import numpy as np
from etils import epath

from cmap_jax.cli.arguments import add_near_names, path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.protocols import PROTOCOLS, Protocol
from cmap_jax.remedies import OTHERS
from cmap_jax.visualization.grids import (
    check_destination,
    result_row,
    results_grid,
    results_title,
    save,
)

SPELLING = {
    "data.directory": "--dir",
    "data.image_directory": "--images",
    "data.missing_images=skip": "--skip-unusable",
    "data.near_names=accept": "--near-names",
    OTHERS: "python main.py --mode=evaluate --workdir=...",
}
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
    parser.add_argument(
        "--skip-unusable",
        action="store_true",
        help="leave out images that cannot be used and what needs them; results are stamped so",
    )
    parser.add_argument("--rankings", action="store_true", help="write each query's first images")
    parser.add_argument(
        "--shortcuts",
        action="store_true",
        help="also the text alone and the image alone; once computed they are kept",
    )
    parser.add_argument(
        "--grid", metavar="FILE", type=path, help="draw some queries and what they find"
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="whose queries are drawn; default: the first"
    )
    parser.add_argument("--count", type=int, default=_ROWS, help="queries in the picture")
    parser.add_argument("--seed", type=int, default=0, help="which queries are drawn")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print the table, and draw."""
    _check(arguments)
    check_devices()
    # Only here: TensorFlow takes seconds to load.
    from cmap_jax import sharding
    from cmap_jax.cli import from_workdir, run
    from cmap_jax.numerics import round_up
    from cmap_jax.workdir import description as workdir_lib
    from input_pipeline.registry import data_set_name

    workdir_lib.read_description(arguments.workdir)  # refuses what is no workdir, with the reason
    config = from_workdir.get_config(arguments.workdir)
    if arguments.data:
        from_workdir.use_data_set(config, data_set_name(arguments.data))
    if arguments.dir:
        config.data.directory = arguments.dir
    if arguments.images:
        config.data.image_directory = arguments.images
    if arguments.skip_unusable:
        config.data.missing_images = "skip"
    if arguments.near_names:
        config.data.near_names = arguments.near_names
    config.eval.rankings = arguments.rankings or bool(arguments.grid)
    config.eval.shortcuts = arguments.shortcuts
    # This machine may have other devices than the run had; neither changes any number.
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.eval.batch_size = round_up(config.eval.batch_size, sharding.make_mesh().size)
    use_compilation_cache(None)
    datasets = run.read_for_evaluation(config, arguments.workdir)
    protocol = _drawn_protocol(datasets, arguments.protocol)
    result = run.evaluate(config, arguments.workdir, datasets)
    step = run.print_results(config, arguments.workdir)
    file = workdir_lib.results_file(arguments.workdir, config.data.name)
    print(f"\nAll of it, for cmap compare: {file}")
    if arguments.grid:
        name = epath.Path(arguments.workdir).absolute().name
        model = f"{name} ({config.model.variant}, step {step:,})"
        _draw(result, datasets, protocol, model, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is read."""
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


def _drawn_protocol(datasets: Any, name: str | None) -> Protocol:
    """Return the protocol of that name, or the first, of those that the data are evaluated by."""
    protocols = {
        e.protocol.name: e.protocol for d in datasets.evaluations.values() for e in d.evaluations
    }
    if name is not None and name not in protocols:
        raise ValueError(f"--protocol {name}: this data set has {', '.join(protocols)}")
    return protocols[name] if name else next(iter(protocols.values()))


def _draw(
    result: Any, datasets: Any, protocol: Protocol, model: str, arguments: argparse.Namespace
) -> None:
    """Draw random queries of a protocol with their best images."""
    records = result.rankings[protocol.name]
    data = next(
        data
        for data in datasets.evaluations.values()
        if any(e.protocol.name == protocol.name for e in data.evaluations)
    )
    rng = np.random.default_rng(arguments.seed)
    chosen = rng.choice(len(records), min(arguments.count, len(records)), replace=False)
    rows = [result_row(records[i], data.read_image, _COLUMNS) for i in sorted(chosen)]
    title = results_title(model, protocol, result.protocols[protocol.name])
    save(results_grid(rows, title), arguments.grid)
    print(f"\n{len(rows)} queries under {protocol.name} with their first images: {arguments.grid}")
