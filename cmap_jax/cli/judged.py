"""Write garment queries with several right and explicit wrong images, paraphrases and references.

cmap judged data/garments --out data/judged
cmap doctor folder data/judged --images data/garments/images
cmap evaluate runs/garments --data folder --dir data/judged --images data/garments/images

The queries are in the layout of a folder, whose judged protocols evaluate them; the rendered
garments stay where they are.
"""

import argparse
import os
import shlex

from cmap_jax.cli.arguments import path
from cmap_jax.files import check_can_write

_COUNT = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("garments", type=path, help="the folder of the rendered garments")
    parser.add_argument(
        "--out", metavar="DIR", type=path, required=True, help="the new folder of the queries"
    )
    parser.add_argument(
        "--count", type=int, default=_COUNT, help=f"number of queries; default {_COUNT}"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all choices; default 0")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and print the next commands."""
    from input_pipeline.garments import judged

    for name, least in (("count", 1), ("seed", 0)):
        if (value := getattr(arguments, name)) < least:
            raise ValueError(f"--{name} must be {least} or more, not {value}")
    if os.path.lexists(arguments.out):
        raise FileExistsError(f"--out: {arguments.out} is there already; give a new folder")
    check_can_write(os.path.dirname(os.path.abspath(arguments.out)))
    judged.write_folder(
        arguments.garments, arguments.out, count=arguments.count, seed=arguments.seed
    )
    images = shlex.quote(os.path.join(arguments.garments, "images"))
    out = shlex.quote(arguments.out)
    print(
        f"{arguments.count:,} queries with {judged.TEXTS} texts each: {arguments.out}\n"
        f"Look at them: cmap doctor folder {out} --images {images}\n"
        f"Evaluate: cmap evaluate WORKDIR --data folder --dir {out} --images {images}"
    )
    return 0
