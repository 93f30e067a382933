"""The Shoes data set on disk -> records (SPEC 5).

Raw: ``relative_captions_shoes.json``, ``train_im_names.txt`` and ``eval_im_names.txt``, with bare
file names. Prepared: ``triplet.{train,val}.json`` and ``split.{train,val}.json``, with paths
relative to the image folder. Images: ``womens_*/<number>/img_*.jpg``, at the top of the image
folder or under ``womens/``. An image's id is its bare file name.
"""

import logging
from collections.abc import Iterable

from etils import epath

from cmap_jax.processing.files import read_json, read_text
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

_RAW = "relative_captions_shoes.json"
_NAME_LISTS = {"train": "train_im_names.txt", "val": "eval_im_names.txt"}
_KEYS = ("ReferenceImageName", "ImageName", "RelativeCaption")

_Splits = dict[str, tuple[str, ...]]
_Triplets = dict[str, tuple[Triplet, ...]]


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read Shoes, from the raw lists or the prepared files.

    Args:
        directory: the folder that holds the annotations.
        image_directory: the folder with the images; None: ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: an annotation file is not what it should be; names the file and the entry.
    """
    root, image_root = epath.Path(directory), epath.Path(image_directory or directory)
    for folder, field in ((root, "directory"), (image_root, "image_directory")):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; set --config.data.{field}")
    if (root / _RAW).exists():
        splits, triplets = _read_raw(root)
    elif (root / "triplet.train.json").exists():
        splits, triplets = _read_prepared(root)
    else:
        raise FileNotFoundError(
            f"{root}: neither {_RAW} nor triplet.train.json; this is not the layout of Shoes. Set "
            "--config.data.directory to the folder that holds the annotations"
        )
    queries = tuple(
        Query(f"{number}", t.reference, t.captions, (t.target,), "all")
        for number, t in enumerate(triplets["val"])
    )
    evaluation = Evaluation(PROTOCOLS["shoes"], {"all": splits["val"]}, queries)
    records = Records(
        "shoes",
        {},
        FixedTriplets(triplets["train"]),
        {"val": (evaluation,)},
        tuple(t.captions[0] for t in triplets["train"]),
    )
    return records.with_images(_locate(image_root, records.image_ids()))


def _read_raw(root: epath.Path) -> tuple[_Splits, _Triplets]:
    """Return ids and triplets by split; a pair belongs to a split that holds both its names."""
    splits = {split: _read_names(root / name) for split, name in _NAME_LISTS.items()}
    entries = _read_triplets(root / _RAW)
    triplets = {}
    for split, names in splits.items():
        known = set(names)
        triplets[split] = tuple(t for t in entries if t.reference in known and t.target in known)
    outside = len(entries) - sum(map(len, triplets.values()))
    if outside:
        logging.info("%s: %d pairs lie in no split", root / _RAW, outside)
    return splits, triplets


def _read_prepared(root: epath.Path) -> tuple[_Splits, _Triplets]:
    """Return ids and triplets by split from files that are split already."""
    splits, triplets = {}, {}
    for split in _NAME_LISTS:
        path = root / f"split.{split}.json"
        names = read_json(path)
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise DataError(f"{path}: must be a list of image paths")
        splits[split] = tuple(dict.fromkeys(map(_bare, names)))
        triplets[split] = _read_triplets(root / f"triplet.{split}.json")
    return splits, triplets


def _read_names(path: epath.Path) -> tuple[str, ...]:
    names = (line.strip() for line in read_text(path).split("\n"))
    names = tuple(dict.fromkeys(_bare(name) for name in names if name))
    if not names:
        raise DataError(f"{path}: must list image names, one a line")
    return names


def _read_triplets(path: epath.Path) -> tuple[Triplet, ...]:
    entries = read_json(path)
    if not isinstance(entries, list):
        raise DataError(f"{path}: must be a list of relative captions")
    triplets = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in _KEYS):
            raise DataError(f"{path}: entry {number} must have texts under {', '.join(_KEYS)}")
        reference, target, caption = (entry[key] for key in _KEYS)
        if not _bare(reference) or not _bare(target):
            raise DataError(f"{path}: entry {number} has an empty image name")
        triplets.append(Triplet(_bare(reference), _bare(target), (caption,)))
    return tuple(triplets)


def _bare(path: str) -> str:
    return path.rpartition("/")[2]


def _locate(root: epath.Path, ids: Iterable[str]) -> dict[str, Image]:
    """Return the images; one that is not found gets the place where the others are."""
    base = root / "womens" if (root / "womens").is_dir() else root
    paths: dict[str, str] = {}
    for pattern in ("womens_*/*/img_*", "womens_*/img_*", "img_*"):
        for path in base.glob(pattern):
            paths.setdefault(path.name, str(path))
    return {i: Image(i, paths.get(i) or str(base / "womens_*" / "*" / i)) for i in ids}
