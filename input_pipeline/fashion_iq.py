"""FashionIQ's layout on disk -> records (SPEC 5). The rendered garments use the same layout.

Annotations: ``captions/cap.<category>.<split>.json`` and
``image_splits/split.<category>.<split>.json``. Images, as seen in the wild: ``images/ID.jpg``,
``images/ID.png``, ``<category>/ID.jpg``, ``resized_image/<category>/ID.jpg``.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence

from etils import epath

from cmap_jax.processing.files import read_json
from cmap_jax.protocols import PROTOCOLS
from input_pipeline.records import (
    DataError,
    Evaluation,
    FixedTriplets,
    Image,
    Query,
    Records,
    Triplet,
)

_PUBLISHED_ORDER = ("dress", "shirt", "toptee")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read FashionIQ: all categories found, trained together, evaluated on val (SPEC 3, 6).

    Args:
        directory: the folder that holds ``captions`` and ``image_splits``.
        image_directory: the folder with the images; None: inside ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: an annotation file is not what it should be; names the file and the entry.
    """
    layout = Layout(directory, image_directory)
    val = {category: layout.annotations(category, "val") for category in layout.categories}
    galleries = {
        "fashioniq/original": {c: layout.split(c, "val") for c in layout.categories},
        "fashioniq/val": {
            c: tuple(dict.fromkeys(i for a in entries for i in (a["candidate"], a["target"])))
            for c, entries in val.items()
        },
    }
    queries = tuple(_queries(val))
    evaluations = {
        "val": tuple(
            Evaluation(PROTOCOLS[name], gallery, queries) for name, gallery in galleries.items()
        )
    }
    return layout.records("fashion_iq", evaluations)


class Layout:
    """A folder in FashionIQ's layout.

    Attributes:
        categories: those with captions, the published ones first and in their order.
    """

    def __init__(self, directory: str, image_directory: str | None = None):
        """Find the categories; raises FileNotFoundError where there are none."""
        self.directory = epath.Path(directory)
        self.image_directory = epath.Path(image_directory or directory)
        for folder, field in (
            (self.directory, "directory"),
            (self.image_directory, "image_directory"),
        ):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder; set --config.data.{field}")
        found = {
            path.name.split(".")[1] for path in self.directory.glob("captions/cap.*.train.json")
        }
        if not found:
            raise FileNotFoundError(
                f"{self.directory}/captions: no cap.<category>.train.json; this is not FashionIQ's "
                "layout. Set --config.data.directory to the folder that holds captions and "
                "image_splits"
            )
        published = [c for c in _PUBLISHED_ORDER if c in found]
        if 0 < len(published) < len(_PUBLISHED_ORDER):
            missing = ", ".join(c for c in _PUBLISHED_ORDER if c not in found)
            logging.warning(
                "%s: no captions of %s; means over the other categories cannot be compared with "
                "published ones",
                self.directory,
                missing,
            )
        self.categories = (*published, *sorted(found - set(published)))

    def annotations(self, category: str, split: str) -> list[dict]:
        """Return the checked entries of a caption file: target, candidate, two captions."""
        path = self.directory / "captions" / f"cap.{category}.{split}.json"
        entries = read_json(path)
        if not isinstance(entries, list):
            raise DataError(f"{path}: must be a list of annotations")
        for number, entry in enumerate(entries):
            _check_annotation(path, number, entry)
        return entries

    def split(self, category: str, split: str) -> tuple[str, ...]:
        """Return the image ids of a split file."""
        path = self.directory / "image_splits" / f"split.{category}.{split}.json"
        ids = read_json(path)
        if not isinstance(ids, list) or not all(isinstance(i, str) and i for i in ids):
            raise DataError(f"{path}: must be a list of image ids")
        return tuple(dict.fromkeys(ids))

    def records(self, name: str, evaluations: dict, facts: dict | None = None) -> Records:
        """Assemble the records from the training files and some evaluations."""
        train = {category: self.annotations(category, "train") for category in self.categories}
        triplets = FixedTriplets(
            tuple(
                Triplet(entry["candidate"], entry["target"], tuple(captions))
                for entries in train.values()
                for entry in entries
                for captions in (entry["captions"], entry["captions"][::-1])
            )
        )
        # In each file all first captions, then all second ones: the published ids' order.
        captions = tuple(
            entry["captions"][position]
            for entries in train.values()
            for position in (0, 1)
            for entry in entries
        )
        records = Records(name, {}, triplets, evaluations, captions, facts=facts or {})
        paths = self._find_images()
        # Where an image is not found, the place where it is looked for first is what to report.
        default = self.image_directory / "images"
        images = {
            i: Image(i, paths.get(i) or str(default / f"{i}.jpg")) for i in records.image_ids()
        }
        return records.with_images(images)

    def _find_images(self) -> dict[str, str]:
        """Return the path of every image file in the folders where they are seen, by id."""
        root = self.image_directory
        folders = [
            root / "images",
            *(root / "resized_image" / c for c in self.categories),
            *(root / "images" / c for c in self.categories),
            *(root / c for c in self.categories),
            root,
        ]
        paths: dict[str, str] = {}
        for folder in folders:
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                if path.suffix.lower() in _SUFFIXES:
                    paths.setdefault(path.stem, str(path))
        return paths


def both_orders(annotations: Sequence[dict], category: str, start: int = 0) -> Iterator[Query]:
    """Return an annotation's two queries, one for each order of its captions (SPEC 5)."""
    for number, entry in enumerate(annotations, start):
        for order, captions in enumerate((entry["captions"], entry["captions"][::-1])):
            yield Query(
                f"{category}/{number}/{order}",
                entry["candidate"],
                tuple(captions),
                (entry["target"],),
                category,
            )


def _queries(annotations: dict[str, list[dict]]) -> Iterator[Query]:
    return itertools.chain.from_iterable(both_orders(a, c) for c, a in annotations.items())


def _check_annotation(path: epath.Path, number: int, entry: object) -> None:
    """Refuse an entry that is not {target, candidate, captions: two texts}."""
    if not isinstance(entry, dict):
        raise DataError(f"{path}: entry {number} is not an object")
    for key in ("candidate", "target"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise DataError(f"{path}: entry {number} has no image id under {key!r}")
    captions = entry.get("captions")
    if (
        not isinstance(captions, list)
        or len(captions) != 2
        or not all(isinstance(c, str) for c in captions)
    ):
        raise DataError(f"{path}: entry {number} must have two texts under 'captions'")
