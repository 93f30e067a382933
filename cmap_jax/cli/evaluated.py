"""The arguments that say on which data a workdir's model is evaluated, and the config they make."""

import argparse
import shlex
from typing import Any

from ml_collections import ConfigDict

from cmap_jax.cli.arguments import add_near_names, path
from cmap_jax.cli.captions import add_captions
from cmap_jax.remedies import OTHERS

SPELLING = {
    "data.directory": "--dir",
    "data.image_directory": "--images",
    "data.missing_images=skip": "--skip-unusable",
    "data.near_names=accept": "--near-names",
    "data.features": "--features",
    "eval.captions": "--captions",
    OTHERS: "python main.py --mode=evaluate --workdir=...",
}


def add_evaluated(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `config_of` reads."""
    parser.add_argument("--data", metavar="NAME", help="another data set than the model's own")
    parser.add_argument("--dir", metavar="DIR", type=path, help="the folder with its annotations")
    parser.add_argument(
        "--images", metavar="DIR", type=path, help="the folder with its images, if elsewhere"
    )
    parser.add_argument(
        "--features",
        metavar="DIR",
        type=path,
        help="read the features that cmap extract wrote there; --features= reads the images, where "
        "the model was trained on features",
    )
    add_near_names(parser, default=None)
    parser.add_argument(
        "--skip-unusable",
        action="store_true",
        help="leave out unusable images and the queries that need them; the results say so",
    )
    add_captions(parser)


def config_of(arguments: argparse.Namespace) -> ConfigDict:
    """Return the config of the workdir's run, with the data that the arguments name.

    Raises:
        FileNotFoundError, ValueError: it is no workdir, or there is no such data set.
    """
    # JAX takes seconds to load, hence the imports in here.
    from cmap_jax import sharding
    from cmap_jax.cli import from_workdir
    from cmap_jax.numerics import round_up
    from cmap_jax.workdir import description as workdir_lib
    from input_pipeline.registry import find_data_set

    workdir_lib.read_description(arguments.workdir)  # refuses a folder that is none
    config = from_workdir.read(arguments.workdir)
    if arguments.data:
        from_workdir.use_data_set(config, find_data_set(arguments.data).name)
    if arguments.dir:
        config.data.directory = arguments.dir
    if arguments.images:
        config.data.image_directory = arguments.images
    if arguments.features is not None:
        config.data.features = arguments.features
    if arguments.skip_unusable:
        config.data.missing_images = "skip"
    if arguments.near_names:
        config.data.near_names = arguments.near_names
    config.eval.captions = arguments.captions
    # This machine may have other devices than the run had. Neither field changes a number.
    config.mesh.data, config.mesh.fsdp = -1, 1
    config.eval.batch_size = round_up(config.eval.batch_size, sharding.make_mesh().size)
    return config


def split_of(datasets: Any, protocol: str) -> Any:
    """Return the split whose queries are evaluated under a protocol.

    Args:
        datasets: the result of `input_pipeline.create_datasets`.
        protocol: a name that one of its evaluations has.
    """
    return next(
        data
        for data in datasets.evaluations.values()
        if any(e.protocol.name == protocol for e in data.evaluations)
    )


def protocol_of(datasets: Any, name: str | None) -> str:
    """Return the protocol whose queries are drawn: ``name``, or the first of the data set.

    Raises:
        ValueError: the data set is not evaluated by that protocol; lists its protocols.
    """
    names = [evaluation.protocol.name for evaluation in evaluations_of(datasets)]
    if name is not None and name not in names:
        raise ValueError(f"--protocol {name}: this data set has {', '.join(names)}")
    return name or names[0]


def evaluations_of(datasets: Any) -> list[Any]:
    """Return the evaluations of a data set, each with its protocol, in their order."""
    return [e for data in datasets.evaluations.values() for e in data.evaluations]


def evaluated_words(arguments: argparse.Namespace) -> list[str]:
    """Return the words of a command line that has the arguments of `add_evaluated`."""
    valued = ("data", "dir", "images", "features", "captions")
    words = [
        f"--{name} {shlex.quote(value)}"
        for name in valued
        if (value := getattr(arguments, name)) is not None
    ]
    if arguments.near_names:
        words.append(f"--near-names {arguments.near_names}")
    return [*words, "--skip-unusable"] if arguments.skip_unusable else words
