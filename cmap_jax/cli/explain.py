"""Draw where in the pictures a query's score comes from, and print how its parts overlap.

cmap explain runs/fashioniq --image dress.jpg --text "is red" --target red.jpg --out explain.png
cmap explain runs/fashioniq --image dress.jpg --text "is red" --text "has no sleeves"
"""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from cmap_jax.cli.arguments import add_text, check_text, path
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.cli.tables import table
from cmap_jax.processing.images import read_image
from cmap_jax.visualization.grids import check_destination, save

_OUT = "explain.png"
_DIMENSIONS = 3
_MOST_DIMENSIONS = 8  # a wider sheet is of no use


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("workdir", type=path, help="the folder of the model")
    parser.add_argument(
        "--image", metavar="FILE", type=path, required=True, help="the reference picture"
    )
    add_text(parser)
    parser.add_argument(
        "--target",
        metavar="FILE",
        type=path,
        help="a picture whose score is explained; without it the reference is its own target",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=path,
        default=_OUT,
        help=f"the picture to write, .png or .jpg; default {_OUT}",
    )
    parser.add_argument(
        "--dimensions",
        type=int,
        default=_DIMENSIONS,
        help=f"how many of the strongest dimensions are drawn at each level; default {_DIMENSIONS}",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the numbers as JSON in place of a table"
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw the sheet and print the scores of the parts and their overlap."""
    _check(arguments)
    check_devices()
    # JAX takes seconds to load, hence the imports in here.
    from cmap_jax.processing.images import preprocess_image
    from cmap_jax.trained import load
    from cmap_jax.visualization.heatmaps import explain
    from cmap_jax.visualization.overlays import overlay_rows, overlay_sheet

    use_compilation_cache(None)
    trained = load(arguments.workdir)
    images = [epath.Path(file) for file in (arguments.image, arguments.target) if file]
    maps = explain(
        trained,
        images[:1],
        [tuple(arguments.text)] if arguments.text else None,
        images[1:] or None,
        arguments.dimensions,
    )
    pictures = [preprocess_image(image, trained.preprocessing) for image in images]
    sheet = overlay_sheet(overlay_rows(maps, 0, pictures), _title(arguments, trained))
    save(sheet, arguments.out)
    numbers = _numbers(maps)
    if arguments.json:
        print(json.dumps({"numbers": numbers, "picture": arguments.out}, indent=2))
    else:
        print(_table(numbers))
        print(f"\nThe heat maps: {arguments.out}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse impossible arguments before anything is read."""
    check_text(arguments.text)
    if not 0 <= arguments.dimensions <= _MOST_DIMENSIONS:
        raise ValueError(
            f"--dimensions must be 0 to {_MOST_DIMENSIONS}, not {arguments.dimensions}"
        )
    check_destination(arguments.out)
    for image in filter(None, (arguments.image, arguments.target)):
        read_image(epath.Path(image))


def _title(arguments: argparse.Namespace, trained: Any) -> str:
    """Return a title that names model, pictures and text."""
    model = f"{os.path.basename(os.path.abspath(arguments.workdir))} (step {trained.step:,})"
    query = [os.path.basename(arguments.image), *(f"“{text}”" for text in arguments.text)]
    target = f" for {os.path.basename(arguments.target)}" if arguments.target else ""
    return f"{model} · {' + '.join(query)}{target}"


def _numbers(maps: Any) -> list[dict[str, Any]]:
    """Return the numbers of each picture and level: scores by part, overlap of the two parts."""
    from cmap_jax.evaluation.overlap import PARTS, compare_heat

    rows = []
    for picture, heat in (("reference", maps.reference), ("target", maps.target)):
        if heat is None:
            continue
        has_parts = set(PARTS) <= set(maps.branches)
        compared = compare_heat(heat, maps.branches) if has_parts else {}
        for number, level in enumerate(maps.levels):
            scores = {
                f"score/{branch}": float(heat.scores[k, number, 0])
                for k, branch in enumerate(maps.branches)
            }
            overlap = {
                name: None if values[0] != values[0] else float(values[0])  # NaN is no JSON
                for name, values in compared.get(level, {}).items()
            }
            rows.append({"picture": picture, "level": level, **scores, **overlap})
    return rows


def _table(numbers: Sequence[dict[str, Any]]) -> str:
    """Return the numbers as a table; a number that a level lacks is a dash."""
    columns = list(dict.fromkeys(name for row in numbers for name in row))
    headers = {"iou": "overlap of heat maps", "correlation": "their correlation"}
    rows = [[headers.get(name, name.replace("score/", "score ")) for name in columns]]
    for row in numbers:
        cells = [row.get(name) for name in columns]
        rows.append(["-" if c is None else c if isinstance(c, str) else f"{c:.4f}" for c in cells])
    return table(rows)
