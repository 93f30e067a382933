"""Make training triplets from the attributes of a catalogue, to train on one's own pictures.

cmap triplets catalogue.csv --images photographs --out triplets
cmap triplets catalogue.csv --out triplets --change color sleeves --keep type --product sku
cmap train --config=configs/folder.py:pretrained --config.data.directory=triplets \
    --config.data.image_directory=photographs

The text of a triplet says which one or two attributes change; all others are alike. The exit
status is 1 where training on the triplets would fail.
"""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cmap_jax.cli.arguments import path
from cmap_jax.cli.tables import table
from cmap_jax.files import check_can_write, is_remote, read_json
from input_pipeline.triplets.making import Settings, Summary, make_triplets
from input_pipeline.triplets.products import Choice, Row

_RECALL = "R@10"  # the recall that is printed for each guess


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    default = Settings()
    parser.add_argument(
        "catalogue",
        type=path,
        help="a .csv, .jsonl or .parquet list with a column image and attributes, as cmap index "
        "takes it with --list",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=path, required=True, help="the new folder of the triplets"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=path,
        help="the folder that the catalogue's paths start from; default: the catalogue's own",
    )
    columns = {"metavar": "COLUMN", "nargs": "+", "default": []}
    parser.add_argument(
        "--change",
        **columns,
        help="attributes that may change; default: all columns of text, or of true and false, "
        "with few different values",
    )
    parser.add_argument(
        "--keep", **columns, help="attributes that are always alike, such as the type of garment"
    )
    parser.add_argument(
        "--product",
        metavar="COLUMN",
        default="",
        help="pictures with the same value show one product, and are in one split",
    )
    parser.add_argument(
        "--per-reference",
        metavar="N",
        type=int,
        default=default.per_reference,
        help=f"most triplets of one reference picture; default {default.per_reference}",
    )
    parser.add_argument(
        "--two-changes",
        metavar="FRACTION",
        type=float,
        default=default.two_changes,
        help=f"of the triplets that change two attributes; default {default.two_changes:g}",
    )
    parser.add_argument(
        "--val",
        metavar="FRACTION",
        type=float,
        default=default.val,
        help=f"of the products that are for validation alone; default {default.val:g}",
    )
    parser.add_argument(
        "--seed", type=int, default=default.seed, help="of the split, the pairs and the texts"
    )
    parser.add_argument(
        "--phrases",
        metavar="FILE",
        type=path,
        help="a JSON file with texts of your own by attribute, in any language, such as "
        '{"color": ["in {new}", "{new} statt {old}"]}',
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the triplets, examine them as cmap doctor does, and return 1 where they are no good."""
    from cmap_jax.cli import doctor
    from input_pipeline.doctor.examine import examine

    settings = _settings(arguments)
    _check_out(arguments.out)
    images = arguments.images or os.path.dirname(arguments.catalogue) or "."
    rows = _read_rows(arguments.catalogue, images)
    summary = make_triplets(rows, images, arguments.out, settings)
    print(_describe(summary, arguments.out), flush=True)
    report = examine("folder", arguments.out, image_directory=images)
    print(f"\n{doctor.page(report)}\n\n{_guesses(summary)}")
    if not report.ready():
        return 1
    print(f"\nNext: {_next_step(arguments.out, images)}")
    return 0


def _settings(arguments: argparse.Namespace) -> Settings:
    choice = Choice(
        change=tuple(arguments.change), keep=tuple(arguments.keep), product=arguments.product
    )
    phrases = read_json(arguments.phrases) if arguments.phrases else {}
    if not isinstance(phrases, dict):
        raise ValueError(f"{arguments.phrases}: must hold an object with a list for each attribute")
    return Settings(
        choice=choice,
        per_reference=arguments.per_reference,
        two_changes=arguments.two_changes,
        val=arguments.val,
        seed=arguments.seed,
        phrases=phrases,
    )


def _check_out(out: str) -> None:
    if is_remote(out):
        raise ValueError(f"--out {out}: name a folder of this machine, and copy it from there")
    if os.path.exists(out) and (not os.path.isdir(out) or os.listdir(out)):
        raise FileExistsError(f"{out} exists; name a new folder with --out")
    check_can_write(out)


def _read_rows(catalogue: str, images: str) -> list[Row]:
    """Return the rows of a catalogue, with pictures relative to their folder.

    Raises:
        ValueError: a picture is elsewhere; names it.
    """
    from cmap_jax.retrieval.catalogue import items_of_list

    root = images if is_remote(images) else os.path.abspath(images)
    rows = []
    for item in items_of_list(catalogue, images):
        image = item.image.removeprefix(f"{root.rstrip('/')}/")
        if image == item.image:
            raise ValueError(
                f"{catalogue}: {item.image} is not in {images}; name the folder that has all "
                "pictures with --images"
            )
        rows.append(Row(item.id, image, item.metadata))
    return rows


def _describe(summary: Summary, out: str) -> str:
    """Return the lines about the attributes and the triplets."""
    own, counts = summary.table, summary.triplets
    change, keep = own.attributes[: own.change], own.attributes[own.change :]
    lines = [f"changing  {', '.join(_with_values(summary, change))}"]
    if keep:
        lines.append(f"keeping   {', '.join(_with_values(summary, keep))}")
    if own.unused:
        unused = (f"{name} ({why})" for name, why in own.unused.items())
        lines.append(f"not used  {', '.join(unused)}")
    if summary.copies:
        lines.append(f"left out  {summary.copies:,} pictures that are copies of others")
    rows = [["what changes", "train", "val"]]
    for changed in dict.fromkeys([*counts["train"], *counts["val"]]):
        rows.append([changed, *(f"{counts[s].get(changed, 0):,}" for s in ("train", "val"))])
    rows.append(["all", *(f"{sum(counts[s].values()):,}" for s in ("train", "val"))])
    rows.append(["pictures", *(f"{summary.pictures[s]:,}" for s in ("train", "val"))])
    return "\n".join([*lines, "", f"{out} holds these triplets:", table(rows)])


def _with_values(summary: Summary, names: Sequence[str]) -> list[str]:
    """Return attributes with the numbers of their values, and of pictures without any."""
    texts = []
    for name in names:
        at = summary.table.attributes.index(name)
        values = [product.values[at] for product in summary.table.products]
        missing = values.count(None)
        count = len(set(values) - {None})
        texts.append(
            f"{name} ({count:,} values{f'; {missing:,} pictures without' if missing else ''})"
        )
    return texts


def _guesses(summary: Summary) -> str:
    """Return a table of what guesses reach, below which a model has learned less than they know."""
    names: Mapping[str, Any] = summary.guesses
    rows = [["guess", *(f"{name} {_RECALL}" for name in names)]]
    for guess in next(iter(names.values())):
        cells = [f"{numbers[guess][_RECALL]:.2f}" for numbers in names.values()]
        rows.append([guess.replace("_", " "), *cells])
    return "\n".join(
        [
            "What a guess reaches that knows only this much; a model that is no better than one of "
            "them has learned no more than that:",
            table(rows),
        ]
    )


def _next_step(out: str, images: str) -> str:
    return (
        "cmap train --config=configs/folder.py:pretrained "
        f"--config.data.directory={shlex.quote(out)} "
        f"--config.data.image_directory={shlex.quote(images)} --config.eval.shortcuts=true"
    )
