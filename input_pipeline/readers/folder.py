"""Any folder of images with tables of reference, text and target -> records.

The tables are ``train``, ``val`` and, optionally, ``test``, each a ``.csv`` or a ``.jsonl`` file in
the folder::

    reference,text,target
    dresses/12.jpg,is red and longer,dresses/97.jpg

    {"reference": "dresses/12.jpg", "text": ["is red", "is longer"], "target": "dresses/97.jpg"}

Images are named by their path in the image folder, by that path without the suffix, or by the bare
file name where only one image has it. A text is one caption or a list of two (in CSV a second
column, ``text2``); a line of JSONL may list several targets. The gallery consists of the images
that the table itself names; a ``gallery.txt`` (an image a line) makes a second gallery. Triplets
that `cmap triplets` made come with ``guesses.json``, see `input_pipeline.triplets.stamp`.
"""

import collections
import csv
import io
import json
import logging
import posixpath
from collections.abc import Iterator, Mapping, Set
from typing import Any

from cmap_jax.processing.images import UPRIGHT
from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.readers.annotations import (
    IMAGE_SUFFIXES,
    check_caption,
    check_folders,
    check_keys,
    check_path,
    find_images,
    shown,
)
from input_pipeline.readers.data_set import DataSet
from input_pipeline.records import (
    DataError,
    Evaluation,
    FixedTriplets,
    Image,
    Query,
    Records,
    Triplet,
)
from input_pipeline.triplets.stamp import read_guesses

_logger = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_COLUMNS = ("reference", "text", "target")
GALLERY = "gallery.txt"

_Rows = list[tuple[str, tuple[str, ...], tuple[str, ...]]]  # reference, captions, targets
_Line = tuple[int, Any, list[Any], list[Any]]  # number of its line; reference, texts, targets


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read a folder of images and tables.

    Args:
        directory: the folder that holds the tables.
        image_directory: the folder with the images; None: ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: a table is not what it should be; names the file and the line.
    """
    root, image_root = check_folders(directory, image_directory)
    here = set(storage.names(root))
    files = {split: file for split in _SPLITS if (file := _find_table(root, here, split))}
    if "val" not in files:
        raise FileNotFoundError(
            f"{root}: no val.csv or val.jsonl, a table of reference, text and target. Set "
            "--config.data.directory to the folder that holds it"
        )
    named: dict[str, str] = {}  # image -> file and line that name it first
    tables = {split: list(_read_table(file, named)) for split, file in files.items()}
    for split, rows in tables.items():
        if not rows:
            raise DataError(f"{files[split]}: no rows")
    gallery_file = storage.join(root, GALLERY)
    listed = _read_gallery(gallery_file, named) if GALLERY in here else ()
    evaluations = {}
    for split in ("val", "test"):
        if split in tables:
            queries = tuple(_queries(tables[split]))
            searched = dict.fromkeys(i for q in queries for i in (q.reference, *q.targets))
            evaluations[split] = tuple(
                Evaluation(PROTOCOLS[f"folder/{split}{suffix}"], {"all": gallery}, queries)
                for suffix, gallery in (("", tuple(searched)), ("-gallery", listed))
                if gallery
            )
    train = [
        Triplet(reference, target, order)
        for reference, captions, targets in tables.get("train", ())
        for target in targets
        for order in dict.fromkeys((captions, captions[::-1]))
    ]
    repeated = {split: n for split, rows in tables.items() if (n := len(rows) - len(set(rows)))}
    for split, count in repeated.items():
        which = f"{count} rows repeat others; each" if count > 1 else "1 row repeats another; it"
        _logger.warning("%s: %s counts again", files[split], which)
    images, folders = _locate(image_root, named)
    return Records(
        name="folder",
        layout=", ".join([*files.values(), *([gallery_file] if listed else [])]),
        image_directory=image_root,
        train=FixedTriplets(tuple(train)),
        evaluations=evaluations,
        vocabulary_captions=tuple(
            c for _, captions, _ in tables.get("train", ()) for c in captions
        ),
        images=images,
        facts={
            **({"repeated_rows": repeated} if repeated else {}),
            **({"oracles": guesses} if (guesses := read_guesses(root)) else {}),
        },
        searched=folders,
        read_as=UPRIGHT,  # people's own pictures: from phones, or cut out
    )


def _find_table(root: str, here: Set[str], split: str) -> str | None:
    """Return a split's file, or None; two files are refused, as they may contradict each other."""
    present = [name for name in (f"{split}.csv", f"{split}.jsonl") if name in here]
    if len(present) > 1:
        raise DataError(f"{root}: has both {present[0]} and {present[1]}; keep one")
    return storage.join(root, present[0]) if present else None


def _read_table(
    file: str, named: dict[str, str]
) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Yield reference, captions and targets of every row; add its images to ``named``."""
    rows = _read_csv(file) if file.endswith(".csv") else _read_jsonl(file)
    for line, reference, texts, targets in rows:
        where = f"{file}, line {line}"
        if not 1 <= len(texts) <= 2:
            raise DataError(f"{where}: a text is one caption or a list of two, not {len(texts)}")
        if not targets:
            raise DataError(f"{where}: no target")
        for image in (reference, *targets):
            if not isinstance(image, str) or image not in named:  # a name is checked once
                named[check_path(image, where)] = where
        captions = tuple([check_caption(text, where) for text in texts])
        yield reference, captions, tuple(dict.fromkeys(targets))


def _read_csv(file: str) -> Iterator[_Line]:
    text = io.StringIO(storage.read_text(file), newline="")
    reader = csv.reader(text, strict=True, skipinitialspace=True)  # people type "a.jpg, is red"
    line = 1  # first line of a row, which may span several lines
    try:
        header = [column.strip() for column in next(reader, [])]
        for column in _COLUMNS:
            if header.count(column) != 1:
                raise DataError(
                    f"{file}, line 1: must have one column {column!r}; the header is "
                    f"{', '.join(map(shown, header))[:200] or 'empty'}"
                )
        reference, text1, target = map(header.index, _COLUMNS)
        text2 = len(header) - 1 - header[::-1].index("text2") if "text2" in header else None
        line = reader.line_num + 1
        for fields in reader:
            number, line = line, reader.line_num + 1
            if len(fields) == len(header):
                second = [fields[text2]] if text2 is not None and fields[text2] else []
                yield number, fields[reference], [fields[text1], *second], [fields[target]]
            elif any(fields) or len(fields) > 1:  # no empty line
                raise DataError(
                    f"{file}, line {number}: {len(fields)} fields; the header has {len(header)}"
                )
    except csv.Error as error:
        raise DataError(f"{file}, line {line}: not CSV: {error}") from error


def _read_jsonl(file: str) -> Iterator[_Line]:
    for number, line in enumerate(storage.read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {str(error)[:100]}") from error
        check_keys(row, {"reference": str, "text": (str, list), "target": (str, list)}, where)
        texts, targets = (
            value if isinstance(value, list) else [value] for value in (row["text"], row["target"])
        )
        yield number, row["reference"], texts, targets


def _read_gallery(file: str, named: dict[str, str]) -> tuple[str, ...]:
    """Return the images that a file lists, and add them to ``named``."""
    ids = {}
    for number, line in enumerate(storage.read_text(file).split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            ids.setdefault(check_path(line.strip(), where), where)
    if not ids:
        raise DataError(f"{file}: must list images, one a line")
    for image, where in ids.items():
        named.setdefault(image, where)
    return tuple(ids)


def _queries(rows: _Rows) -> Iterator[Query]:
    for number, (reference, captions, targets) in enumerate(rows):
        for order, text in enumerate(dict.fromkeys((captions, captions[::-1]))):
            yield Query(
                id=f"{number}/{order}",
                reference=reference,
                captions=text,
                targets=targets,
                category="all",
                annotation=f"{number}",
            )


def _locate(root: str, ids: Mapping[str, str]) -> tuple[dict[str, Image], tuple[str, ...]]:
    """Return the images: by path, by path without suffix, or by a bare name that is unique.

    Where all paths begin with the same folder, this may be the folder of the images itself.

    Args:
        root: the folder of the images.
        ids: names of the images, each with the file and line that name it first.

    Returns:
        The images, and the folders that were searched for bare names.
    """
    upper = [suffix.upper() for suffix in IMAGE_SUFFIXES]
    suffixes = ("", *IMAGE_SUFFIXES, *upper)
    files = find_images(ids, [root], suffixes)
    tops = {i.partition("/")[0] for i in ids}
    if not files and len(tops) == 1 and all("/" in i for i in ids):
        below = {i.partition("/")[2]: i for i in ids}
        files = {below[name]: f for name, f in find_images(below, [root], suffixes).items()}
    lost = [i for i in ids if i not in files and "/" not in i]
    searched = {}
    if lost:
        paths: dict[str, list[str]] = collections.defaultdict(list)
        for path in storage.walk(root):
            inside, _, name = path.rpartition("/")
            searched[storage.join(root, inside) if inside else root] = None
            stem, dot, suffix = name.rpartition(".")
            if dot + suffix.lower() in IMAGE_SUFFIXES:
                for key in (name, stem):
                    paths[key].append(path)
        for i in lost:
            if len(paths.get(i, ())) > 1:
                options = " or ".join(map(shown, paths[i][:3]))
                raise DataError(f"{ids[i]}: {shown(i)} may be {options}; name it by its path")
            if i in paths:
                files[i] = storage.join(root, paths[i][0])
    known: dict[str, str] = {}
    for i, file in files.items():
        other = known.setdefault(posixpath.normpath(file), i)
        if other != i:  # the image would be in the gallery twice
            raise DataError(
                f"{ids[i]}: {shown(i)} is the image that is called {shown(other)} in "
                f"{ids[other].rpartition('/')[2]}; use one name"
            )
    images = {i: Image(i, files.get(i) or storage.join(root, i)) for i in ids}
    return images, tuple(searched)


DATA_SET = DataSet(
    name="folder",
    read=read,
    mark=r"val\.(?:csv|jsonl)",
    training_files="train.csv or train.jsonl",
    published=False,
    description=(
        "Composed image retrieval on images of one's own: tables name a reference image, a text "
        "and a target image."
    ),
    manual_dir=(
        "`train.csv` and `val.csv` (`reference,text,target`) or `.jsonl`, perhaps `test` and "
        "`gallery.txt`, and the images that they name"
    ),
)
