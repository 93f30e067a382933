"""Search an index: reference pictures, a text and conditions in, the best images out.

cmap search INDEX --image dress.jpg --text "is red" --text "has no sleeves"
cmap search INDEX --item dresses/12.jpg --text longer --where size=s,m --where price=..50
cmap search INDEX --image dress.jpg --text "in red" --k 20 --grid hits.png
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from PIL import Image, ImageOps

from cmap_jax.cli.arguments import (
    add_backend_arguments,
    add_text,
    check_text,
    path,
    settings_from,
)
from cmap_jax.cli.compilation_cache import use_compilation_cache
from cmap_jax.cli.devices import check_devices
from cmap_jax.cli.tables import table
from cmap_jax.cli.where import parse_where
from cmap_jax.processing.images import ImageReadError, read_image
from cmap_jax.retrieval.filters import Fields, Numbers, Words
from cmap_jax.visualization.grids import (
    MISSING,
    SIDE,
    Drawable,
    ResultRow,
    check_destination,
    results_grid,
    save,
)

_K = 10
_MOST_IN_GRID = 24  # images of a row, which is as wide as they need
_FIELDS = 4  # metadata shown in the table
_WORDS = 20  # words of a field, named where no image has the one that was asked for
_SHOWN = 24  # characters of a metadata value in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("index", type=path, help="the folder that cmap index wrote")
    parser.add_argument(
        "--image",
        metavar="FILE",
        type=path,
        action="append",
        default=[],
        help="a reference picture; several are averaged",
    )
    parser.add_argument(
        "--item",
        metavar="ID",
        action="append",
        default=[],
        help="an image of the index as a reference, by its id; may be given several times",
    )
    add_text(parser)
    parser.add_argument("--k", type=int, default=_K, help=f"number of images; default {_K}")
    parser.add_argument(
        "--where",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="a condition on the metadata: color=red, size=s,m (any of them), price=10..50 or "
        "price=..50; may be given for several fields, all of which must hold",
    )
    parser.add_argument(
        "--grid", metavar="FILE", type=path, help="draw the query and its images, .png or .jpg"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the images as JSON in place of a table"
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=path,
        help="the model's folder; default: where it was when the index was made",
    )
    add_backend_arguments(parser, "search with this one in place of the index's own")


def run(arguments: argparse.Namespace) -> int:
    """Search, and print or draw the images."""
    _check(arguments)
    check_devices()
    # JAX takes seconds to load, hence the imports in here.
    from cmap_jax.retrieval.index_files.reading import StoredIndex
    from cmap_jax.retrieval.retriever import Retriever

    index = StoredIndex(arguments.index)
    fields = Fields(index.manifest.fields, index.column, len(index))
    where = parse_where(arguments.where, fields)  # before the model is read
    use_compilation_cache(None)
    retriever = Retriever.load(
        index,
        model=arguments.model,
        backend=arguments.backend,
        settings=settings_from(arguments.set),
    )
    hits = retriever.search(
        [epath.Path(image) for image in arguments.image],
        tuple(arguments.text) or None,
        arguments.k,
        where,
        item=arguments.item or None,
    )
    if arguments.json:
        print(json.dumps({"hits": [_fields(hit) for hit in hits]}, indent=2, ensure_ascii=False))
    else:
        print(_heading(arguments, len(index), hits))
        print(_table(hits, list(fields.kinds)) if hits else _why_none(where, fields))
    if arguments.grid and hits:
        _draw(arguments, index, hits)
    elif arguments.grid and not arguments.json:
        print(f"\nNo image, and hence no picture drawn: {arguments.grid}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse impossible arguments before anything is read."""
    if not (arguments.image or arguments.item or arguments.text):
        raise ValueError("nothing to search for: give --image FILE, --item ID or --text CAPTION")
    check_text(arguments.text)
    if arguments.k < 1:
        raise ValueError(f"--k must be 1 or more, not {arguments.k}")
    if arguments.grid:
        check_destination(arguments.grid)
    for image in arguments.image:
        read_image(epath.Path(image))


def _fields(hit: Any) -> dict[str, Any]:
    """Return a hit's fields for JSON."""
    names = [field.name for field in dataclasses.fields(hit)]
    fields = {name: getattr(hit, name) for name in names}
    return {**fields, "parts": dict(hit.parts), "metadata": dict(hit.metadata)}


def _heading(arguments: argparse.Namespace, total: int, hits: Sequence[Any]) -> str:
    """Return a line about the query and the number of its images."""
    query = [*arguments.image, *arguments.item, *(f"“{text}”" for text in arguments.text)]
    where = f", where {' and '.join(arguments.where)}" if arguments.where else ""
    return f"{' + '.join(query)}: {len(hits)} of {total:,} images{where}"


def _table(hits: Sequence[Any], fields: Sequence[str]) -> str:
    """Return hits as a table of ids, scores, their parts by branch, and the first metadata."""
    branches = list(dict.fromkeys(name.partition("/")[0] for name in hits[0].parts)) if hits else []
    if len(branches) == 1:
        branches = []  # it would repeat the score
    rows = [["id", "score", *branches, *fields[:_FIELDS]]]
    for hit in hits:
        sums = [
            sum(part for name, part in hit.parts.items() if name.startswith(f"{branch}/"))
            for branch in branches
        ]
        values = [_short(hit.metadata.get(field)) for field in fields[:_FIELDS]]
        rows.append([hit.id, *(f"{number:.4f}" for number in (hit.score, *sums)), *values])
    return table(rows)


def _why_none(where: Mapping[str, Any], fields: Fields) -> str:
    """Return why no image fulfils the conditions."""
    lines = []
    for name, condition in where.items():
        if not fields.mask({name: condition}).any():
            lines.append(f"{name}: {_values(fields.field(name))}")
    return "\n".join(lines or ["no image fulfils all of them together"])


def _values(field: Words | Numbers) -> str:
    """Return the words or the range of numbers that a field has."""
    if isinstance(field, Numbers):
        values = " to ".join(field.span or ())
    else:
        words = list(field.counts)
        values = ", ".join([*words[:_WORDS], *(["..."] if len(words) > _WORDS else [])])
    return f"there are {values}" if values else "no image has a value"


def _short(value: Any) -> str:
    """Return a metadata value as the table shows it."""
    text = ", ".join(value) if isinstance(value, list | tuple) else str(value)
    text = "" if value is None else text
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _draw(arguments: argparse.Namespace, index: Any, hits: Sequence[Any]) -> None:
    """Draw the query and its images."""
    shown = hits[:_MOST_IN_GRID]
    references = {image: image for image in arguments.image}
    for item in arguments.item:
        references[item] = index.item_at(index.position_of(item)).image
    row = ResultRow(
        reference=_reference([epath.Path(image) for image in references.values()]),
        captions=arguments.text,
        results=[(epath.Path(hit.image), False) for hit in shown],
        rank=None,
        names=(
            " + ".join(os.path.basename(name) for name in references),
            *(hit.id for hit in shown),
        ),
        note=" and ".join(arguments.where),
    )
    title = f"{os.path.basename(index.folder)} · {len(index):,} images"
    save(results_grid([row], title), arguments.grid)
    if not arguments.json:
        print(f"\nThe query with its first {len(row.results)} images: {arguments.grid}")


def _reference(images: Sequence[os.PathLike]) -> Drawable:
    """Return the picture that stands for the references in a grid: up to four of them in one."""
    if not images:
        return ImageReadError("no reference: the text alone")
    if len(images) == 1:
        return images[0]
    sheet = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    for number, image in enumerate(images[:4]):
        try:
            picture = ImageOps.pad(read_image(image), (SIDE, SIDE), color="white")
        except ImageReadError:  # an item's picture has moved since its embedding was stored
            picture = Image.new("RGB", (SIDE, SIDE), MISSING)
        sheet.paste(picture, (SIDE * (number % 2), SIDE * (number // 2)))
    return sheet
