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

Lines of ``val.jsonl`` and ``test.jsonl`` may say more of a query::

    {"reference": ["dresses/12.jpg", "dresses/15.jpg"], "text": "is red",
     "target": ["dresses/97.jpg", "dresses/98.jpg"], "wrong": ["dresses/13.jpg"],
     "paraphrases": ["in red", ["the color is red", "not blue"]]}

Several references are one query (docs/method.md, section 1, several references). ``wrong`` lists
images that a person judged to be wrong, and ``paraphrases`` further texts that mean the same. A
table with either field, even an empty one, is evaluated under "folder/val-judged" too
(docs/method.md, section 6, several right and explicit wrong images); "folder/val" reads neither.
"""

import collections
import dataclasses
import logging
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from cmap_jax.processing.images import UPRIGHT
from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.readers.annotations import (
    IMAGE_SUFFIXES,
    check_folders,
    check_path,
    find_images,
    shown,
)
from input_pipeline.readers.data_set import DataSet
from input_pipeline.readers.tables import Row, read_table
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
GALLERY = "gallery.txt"


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
    tables = {split: list(read_table(file, named)) for split, file in files.items()}
    for split, rows in tables.items():
        if not rows:
            raise DataError(f"{files[split]}: no rows")
    gallery_file = storage.join(root, GALLERY)
    listed = _read_gallery(gallery_file, named) if GALLERY in here else ()
    evaluations = {}
    for split in ("val", "test"):
        if split in tables:
            evaluations[split] = tuple(_evaluations(split, tables[split], listed))
    train = [
        Triplet(row.references[0], target, order)
        for row in tables.get("train", ())
        for target in row.targets
        for order in dict.fromkeys((row.captions, row.captions[::-1]))
    ]
    paraphrases = {
        split: n
        for split, rows in tables.items()
        if (n := sum(len(row.texts) - len(set(row.texts)) for row in rows))
    }
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
            caption for row in tables.get("train", ()) for caption in row.captions
        ),
        images=images,
        facts={
            **({"repeated_rows": repeated} if repeated else {}),
            **({"repeated_paraphrases": paraphrases} if paraphrases else {}),
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


def _evaluations(split: str, rows: Sequence[Row], listed: tuple[str, ...]) -> Iterator[Evaluation]:
    """Yield a split's evaluations, those by judgments only where a row has some."""
    named = dict.fromkeys(i for row in rows for i in (*row.references, *row.targets, *row.wrong))
    galleries = {"": tuple(named), "-gallery": listed}
    forms = {"": tuple(_queries(rows))}
    if any(row.judged for row in rows):
        forms["-judged"] = tuple(_judged_queries(rows))
    for form, queries in forms.items():
        for suffix, gallery in galleries.items():
            if gallery:
                protocol = PROTOCOLS[f"folder/{split}{form}{suffix}"]
                yield Evaluation(protocol, {"all": gallery}, queries)


def _queries(rows: Iterable[Row]) -> Iterator[Query]:
    """Yield the queries by both caption orders; judgments play no part."""
    for number, row in enumerate(rows):
        for order, text in enumerate(dict.fromkeys((row.captions, row.captions[::-1]))):
            yield _query(row, f"{number}", f"{number}/{order}", text)


def _judged_queries(rows: Iterable[Row]) -> Iterator[Query]:
    """Yield a query for the text and for each paraphrase, with the explicit wrong images."""
    for number, row in enumerate(rows):
        for at, text in enumerate(dict.fromkeys(row.texts)):
            query = _query(row, f"{number}", f"{number}/text{at}", text)
            yield dataclasses.replace(query, wrong=row.wrong)


def _query(row: Row, annotation: str, name: str, captions: tuple[str, ...]) -> Query:
    return Query(
        id=name,
        reference=row.references[0],
        captions=captions,
        targets=row.targets,
        category="all",
        annotation=annotation,
        more_references=row.references[1:],
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
