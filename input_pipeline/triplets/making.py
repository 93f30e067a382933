"""From the rows of a catalogue to a folder of triplets, which the data set "folder" reads.

summary = make_triplets(rows, "photographs", "triplets", Settings(choice=Choice(keep=("type",))))

The folder holds train.jsonl, val.jsonl and guesses.json, and a gallery.txt of all pictures of
validation if val.jsonl does not name them all. The pictures stay where they are. The same rows and
settings give the same files.
"""

import collections
import dataclasses
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cmap_jax.files import complete_folder, write_text
from cmap_jax.protocols import PROTOCOLS
from input_pipeline.doctor.image_findings import same_bytes
from input_pipeline.readers.annotations import find_images, shown
from input_pipeline.readers.folder import GALLERY
from input_pipeline.records import DataError, Image
from input_pipeline.triplets.guesses import Query, guesses
from input_pipeline.triplets.pairing import Groups, Positions
from input_pipeline.triplets.phrases import Phrases
from input_pipeline.triplets.products import Choice, Product, Row, Table, Values, split, tabulate
from input_pipeline.triplets.stamp import write_guesses

_EXAMPLES = 3  # pictures that a message names
_MOST_PER_REFERENCE = 1000
_PROTOCOL, _GALLERY_PROTOCOL = "folder/val", "folder/val-gallery"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How triplets are drawn.

    Attributes:
        choice: the columns that matter.
        per_reference: most triplets of one reference picture, in training and in validation.
        two_changes: fraction of the triplets that change two attributes, where there are both.
        val: fraction of the products that are for validation.
        seed: of the split, the pairs and the captions.
        phrases: own phrasings by attribute; see `Phrases`.

    Raises:
        ValueError: a value is out of its range; names it.
    """

    choice: Choice = dataclasses.field(default_factory=Choice)
    per_reference: int = 4
    two_changes: float = 0.3
    val: float = 0.2
    seed: int = 0
    phrases: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.per_reference <= _MOST_PER_REFERENCE:
            raise ValueError(
                f"per_reference (--per-reference) must be 1 to {_MOST_PER_REFERENCE:,}, not "
                f"{self.per_reference}"
            )
        if not 0 <= self.two_changes <= 1:
            raise ValueError(f"two_changes (--two-changes) must be 0 to 1, not {self.two_changes}")
        if not 0 < self.val < 1:
            raise ValueError(f"val (--val) must be between 0 and 1, not {self.val}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of `make_triplets`.

    Attributes:
        table: the products and attributes.
        copies: pictures that were left out, since another has the same bytes.
        triplets: by split, the triplets by the attributes that change in them.
        pictures: number of pictures by split.
        guesses: by protocol, the recalls of guesses.
    """

    table: Table
    copies: int
    triplets: Mapping[str, Mapping[str, int]]
    pictures: Mapping[str, int]
    guesses: Mapping[str, Mapping[str, Mapping[str, float]]]


class _Triplet(NamedTuple):
    """A reference and the right images; `changed` holds the positions of what differs."""

    reference: Product
    changed: Positions
    target: Values
    captions: tuple[str, ...]
    images: tuple[str, ...]  # ids of the targets


def make_triplets(
    rows: Sequence[Row], image_directory: str, out: str, settings: Settings
) -> Summary:
    """Write triplets to a new folder; it appears when it is complete.

    Args:
        rows: of the catalogue.
        image_directory: folder that the rows' pictures are relative to.
        out: the new folder.
        settings: how triplets are drawn.

    Raises:
        DataError: the catalogue cannot be used; says why, and the remedy.
        FileNotFoundError: pictures are missing; names some.
        OSError: the folder is there already and not empty, or cannot be written.
    """
    table = tabulate(rows, settings.choice)
    phrases = Phrases(table.attributes[: table.change], table.flags, settings.phrases)
    products = _without_copies(table.products, image_directory)
    parts: dict[str, list[Product]] = {"train": [], "val": []}
    for product, is_val in zip(products, split(products, settings.val, settings.seed), strict=True):
        parts["val" if is_val else "train"].append(product)
    triplets = {}
    for name, own in parts.items():
        groups = Groups(own, table.change)
        triplets[name] = list(_draw(own, groups, table, phrases, settings, name))
    _check_any(triplets, table, products, settings)
    ceilings = _guesses(triplets["val"], parts["val"], table)
    with complete_folder(os.path.abspath(out)) as folder:
        for name, drawn in triplets.items():
            lines = [json.dumps(_line(t, table), ensure_ascii=False) for t in drawn]
            write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
        if _GALLERY_PROTOCOL in ceilings:
            write_text(folder / GALLERY, "".join(f"{p.image}\n" for p in parts["val"]))
        write_guesses(os.fspath(folder), ceilings, _settings(settings, table))
    return Summary(
        table=table,
        copies=len(table.products) - len(products),
        triplets={name: _count(drawn, table) for name, drawn in triplets.items()},
        pictures={name: len(own) for name, own in parts.items()},
        guesses=ceilings,
    )


def _without_copies(products: Sequence[Product], image_directory: str) -> list[Product]:
    """Return products whose pictures are all different files of different content.

    Raises:
        FileNotFoundError: pictures are missing.
    """
    paths = find_images([product.image for product in products], [image_directory])
    missing = [product.image for product in products if product.image not in paths]
    if missing:
        examples = ", ".join(map(shown, missing[:_EXAMPLES]))
        raise FileNotFoundError(
            f"{len(missing):,} of {len(products):,} pictures are missing in {image_directory}, "
            f"such as {examples}; name their folder with --images, or take them out of the "
            "catalogue"
        )
    copies = {
        image.id
        for group in same_bytes([Image(name, path) for name, path in paths.items()])
        for image in group[1:]
    }
    return [product for product in products if product.image not in copies]


def _draw(
    products: Sequence[Product],
    groups: Groups,
    table: Table,
    phrases: Phrases,
    settings: Settings,
    part: str,
) -> Iterator[_Triplet]:
    """Yield the triplets of a split; each reference has a random sequence of its own."""
    for reference in products:
        generator = random.Random(f"{settings.seed}/{reference.image}")

        def draw(count: int, generator: random.Random = generator) -> int:
            # Only random() is the same in all versions of Python.
            return int(generator.random() * count)

        available = groups.changes(reference.values)
        for _ in range(settings.per_reference):
            if not available:
                break
            wants_two = generator.random() < settings.two_changes
            sizes = [p for p in available if (len(p) > 1) == wants_two] or list(available)
            changed = sizes[draw(len(sizes))]
            target = available[changed].pop(draw(len(available[changed])))
            if not available[changed]:
                del available[changed]
            changes = [
                (table.attributes[i], reference.values[i], target[i])
                for i in (changed if draw(2) else changed[::-1])
            ]
            captions = tuple(phrases.captions(changes, draw))
            images = [product.image for product in groups.members[target]]
            if part == "train":  # a row trains on one pair; a query is answered by any
                images = [images[draw(len(images))]]
            yield _Triplet(
                reference=reference,
                changed=changed,
                target=target,
                captions=captions,
                images=tuple(images),
            )


def _check_any(
    triplets: Mapping[str, Sequence[_Triplet]],
    table: Table,
    products: Sequence[Product],
    settings: Settings,
) -> None:
    """Refuse a catalogue without pairs in a split.

    Raises:
        DataError: says whether the catalogue has any, and the remedy.
    """
    empty = [name for name, drawn in triplets.items() if not drawn]
    if not empty:
        return
    changing = ", ".join(table.attributes[: table.change])
    groups = Groups(products, table.change)
    if not any(groups.changes(values) for values in groups.members):
        raise DataError(
            f"no two of the {len(products):,} pictures differ in one or two of {changing} and "
            f"agree in all other attributes ({', '.join(table.attributes)}): name fewer "
            "attributes with --change and --keep, or correct their values"
        )
    raise DataError(
        f"no two pictures of the {empty[0]} split (--val {settings.val:g}) differ in one or two of "
        f"{changing} and agree in all others: the catalogue has few such pairs; give another --val "
        "or --seed, or name fewer attributes with --change and --keep"
    )


def _line(triplet: _Triplet, table: Table) -> dict[str, Any]:
    """Return a triplet as a row of the data set "folder"; it ignores "changed"."""
    text, images = list(triplet.captions), list(triplet.images)
    return {
        "reference": triplet.reference.image,
        "text": text if len(text) > 1 else text[0],
        "target": images if len(images) > 1 else images[0],
        "changed": [table.attributes[i] for i in triplet.changed],
    }


def _guesses(
    triplets: Sequence[_Triplet], products: Sequence[Product], table: Table
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the recalls of guesses for each protocol of the validation split."""
    queries: collections.Counter[tuple[Values, Positions, Values]] = collections.Counter()
    for t in triplets:
        queries[t.reference.values, t.changed, t.target] += len({t.captions, t.captions[::-1]})
    asked = [Query(*key, count) for key, count in queries.items()]
    named = {i for t in triplets for i in (t.reference.image, *t.images)}
    galleries = {_PROTOCOL: [p for p in products if p.image in named]}
    if len(named) < len(products):
        galleries[_GALLERY_PROTOCOL] = products
    return {
        name: guesses(
            asked,
            collections.Counter(product.values for product in gallery),
            table.attributes,
            table.change,
            PROTOCOLS[name].cutoffs("R"),
        )
        for name, gallery in galleries.items()
    }


def _count(triplets: Sequence[_Triplet], table: Table) -> dict[str, int]:
    names = (" and ".join(table.attributes[i] for i in t.changed) for t in triplets)
    return dict(collections.Counter(names).most_common())


def _settings(settings: Settings, table: Table) -> dict[str, Any]:
    """Return what the triplets were made with, for their file."""
    return {
        **dataclasses.asdict(settings),
        "choice": {
            "change": list(table.attributes[: table.change]),
            "keep": list(table.attributes[table.change :]),
            "product": settings.choice.product,
        },
        "phrases": {name: list(templates) for name, templates in settings.phrases.items()},
    }
