"""Draw random triplets of a data set (reference, text, target), to see whether the pairs fit.

cmap show fashion200k data/fashion200k --out grid.png
cmap show fashion_iq data/fashion_iq --images /photos --split val --count 12 --seed 1 --out val.jpg
cmap show fashion_iq data/fashion_iq --protocol fashioniq/original-joined --out joined.png
"""

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from cmap_jax.cli.arguments import add_near_names, path
from cmap_jax.processing.images import ImagePreprocessing, ImageReadError, read_image
from cmap_jax.visualization.grids import (
    Drawable,
    TripletRow,
    check_destination,
    save,
    triplet_grid,
)
from input_pipeline import storage
from input_pipeline.images.check import check_images
from input_pipeline.images.sources import open_images
from input_pipeline.reading import read_folder
from input_pipeline.records import DataError, Query, Records, Triplet, TripletSource
from input_pipeline.registry import DATA_SETS, find_data_set

SPELLING = {
    "data.directory": "the argument directory",
    "data.image_directory": "--images",
    "data.near_names=accept": "--near-names",
}
_MOST = 100  # rows; a larger picture is of no use
_TARGETS = 3  # right images shown of a query


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("dataset", help=f"one of {', '.join(DATA_SETS)}")
    parser.add_argument("directory", type=path, help="the folder that holds the annotations")
    parser.add_argument(
        "--out", required=True, type=path, help="the picture to write, .png or .jpg"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        type=path,
        help="the folder with the images; default: found inside the other folder",
    )
    add_near_names(parser)
    parser.add_argument(
        "--split",
        help="train, val, test, or an unlabelled one such as CIRR's test1; default: train, or val "
        "where there is nothing to train on",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="draw the queries of an evaluation, such as fashioniq/val, in place of a split",
    )
    parser.add_argument("--count", type=int, default=8, help="number of triplets; default 8")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice; default 0")


def run(arguments: argparse.Namespace) -> int:
    """Draw the picture and print a line about it."""
    name = find_data_set(arguments.dataset).name
    _check(arguments)
    records = read_folder(name, arguments.directory, arguments.images, arguments.near_names)
    if arguments.protocol:
        split, source = arguments.protocol, _queries_of(records, arguments.protocol)
    else:
        split = arguments.split or ("train" if len(records.train) else "val")
        source = _items_of(records, split)
        if arguments.split is None and split == "val":
            print(f"{name} has nothing to train on there: these are queries of val.")
    items, total = _draw_items(source, arguments.count, arguments.seed), len(source)
    images = _load(records, items)
    rows = [_row(item, images, name) for item in items]
    chosen = f"{len(items)} of {total:,} at random, seed {arguments.seed}"
    save(triplet_grid(rows, f"{name} · {split} · {chosen}"), arguments.out)
    print(f"{arguments.out} shows {name}, {split}: {chosen}. Layout: {records.layout}")
    reasons = {i: image for i, image in images.items() if isinstance(image, ImageReadError)}
    if reasons:
        example, reason = next(iter(reasons.items()))
        where = arguments.directory + (f" --images {arguments.images}" if arguments.images else "")
        print(
            f"{len(reasons)} of its {len(images)} images cannot be used and are grey, such as "
            f"{example}: {reason}. All that is wrong: cmap doctor {name} {where}"
        )
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse impossible arguments before anything is read."""
    if not 1 <= arguments.count <= _MOST:
        raise ValueError(f"--count must be 1 to {_MOST}, not {arguments.count}")
    if arguments.seed < 0:
        raise ValueError(f"--seed must not be negative, not {arguments.seed}")
    if arguments.protocol and arguments.split:
        raise ValueError("--protocol names queries of a split already: leave out --split")
    check_destination(arguments.out)
    for folder in filter(None, (arguments.directory, arguments.images)):
        if not storage.is_folder(folder):
            raise FileNotFoundError(f"{folder}: no such folder")


def _queries_of(records: Records, protocol: str) -> Sequence[Query]:
    """Return the queries of a protocol's evaluation.

    Raises:
        DataError: there are none; names the protocols with queries.
    """
    known = {
        e.protocol.name: e.queries for of_split in records.evaluations.values() for e in of_split
    }
    if not known.get(protocol):
        raise DataError(
            f"{records.name} has no queries of a protocol {protocol!r} there; give --protocol "
            f"{' or '.join(name for name, queries in known.items() if queries)}"
        )
    return known[protocol]


def _items_of(records: Records, split: str) -> TripletSource | Sequence[Query]:
    """Return a split's training items or queries.

    Raises:
        DataError: there are none; names the splits with items or queries.
    """
    queries = {
        **{name: of_split[0].queries for name, of_split in records.evaluations.items()},
        **{name: evaluation.queries for name, evaluation in records.unlabelled.items()},
    }
    source = records.train if split == "train" else queries.get(split, ())
    if not len(source):
        splits = [*(["train"] if len(records.train) else []), *(s for s, q in queries.items() if q)]
        raise DataError(
            f"{records.name} has nothing in a split {split!r}; give --split {' or '.join(splits)}"
        )
    return source


def _draw_items(
    source: TripletSource | Sequence[Query], count: int, seed: int
) -> list[Triplet | Query]:
    """Return ``count`` random training items or queries, or all where there are fewer."""
    chosen = np.random.default_rng(seed).choice(
        len(source), size=min(count, len(source)), replace=False
    )
    if isinstance(source, Sequence):
        return [source[item] for item in chosen]
    return [source.draw(seed, 0, int(item)) for item in chosen]


def _shown(item: Triplet | Query) -> tuple[str, ...]:
    """Return the ids of the images that are drawn: the first reference and the first targets."""
    targets = (item.target,) if isinstance(item, Triplet) else item.targets[:_TARGETS]
    return (item.reference, *targets)


def _load(records: Records, items: Sequence[Triplet | Query]) -> dict[str, Drawable]:
    """Return each image by its id, or the error that is drawn instead."""
    ids = dict.fromkeys(i for item in items for i in _shown(item))
    # The reader has not looked for the file of a target that is in no gallery.
    known = [i for i in ids if i in records.images]
    reasons = check_images(records, known)
    source = open_images(records)
    images: dict[str, Drawable] = {i: ImageReadError("in no gallery") for i in ids}
    reading = ImagePreprocessing(read_as=records.read_as)
    for i in known:
        try:
            if i in reasons:
                raise ImageReadError(f"{i}: {reasons[i]}")
            images[i] = read_image(source.read(i), reading)
        except ImageReadError as error:
            images[i] = ImageReadError(str(error).partition(": ")[2])
    return images


def _row(item: Triplet | Query, images: Mapping[str, Drawable], name: str) -> TripletRow:
    """Return the row that shows an item of the data set ``name``."""
    ids = _shown(item)
    # Without categories, readers call the only one "all" or by the data set's name.
    notes = [item.category] if item.category not in ("", "all", name) else []
    if isinstance(item, Query) and not item.targets:
        notes.append("the answer is not public")
    elif isinstance(item, Query) and len(item.targets) > _TARGETS:
        notes.append(f"{_TARGETS} of {len(item.targets)} right images")
    if isinstance(item, Query) and item.more_references:
        notes.append(f"1 of {len(item.references)} references")
    reference, *targets = (images[i] for i in ids)
    return TripletRow(
        reference=reference,
        captions=item.captions,
        targets=targets,
        names=ids,
        note=", ".join(notes),
    )
