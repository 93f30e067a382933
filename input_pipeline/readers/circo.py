"""CIRCO on disk -> records (docs/method.md, section 5): for evaluation only.

A folder holds ``annotations/{val,test}.json``, and the images of COCO's unlabeled2017 in
``COCO2017_unlabeled/unlabeled2017``, ``unlabeled2017``, or the image folder itself. The gallery
consists of the images that ``image_info_unlabeled2017.json`` lists or, without that file, of all
images in the folder. An image's id is its number, padded to 12 digits.
"""

import logging
import re
from collections.abc import Iterator
from typing import Any

from cmap_jax.protocols import PROTOCOLS, AnswerFile, Submission
from input_pipeline import storage
from input_pipeline.readers.annotations import (
    check_caption,
    check_folders,
    check_keys,
    check_unique,
    read_entries,
    shown,
)
from input_pipeline.readers.data_set import Count, DataSet
from input_pipeline.records import DataError, Evaluation, FixedTriplets, Image, Query, Records

_logger = logging.getLogger(__name__)

GALLERY_IMAGES = 123_403  # images of COCO unlabeled2017, as published
_FOLDERS = ("COCO2017_unlabeled/unlabeled2017", "unlabeled2017")
GALLERY_LIST = "image_info_unlabeled2017.json"
_LISTS = (
    f"COCO2017_unlabeled/annotations/{GALLERY_LIST}",
    f"annotations/{GALLERY_LIST}",
    GALLERY_LIST,
)
_FILE = re.compile(r"([0-9]{12})\.jpg")
_MOST = 10**12  # ids have 12 digits


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read CIRCO: val with its ground truths, and the unlabelled test. Nothing to train on.

    Args:
        directory: the folder that holds ``annotations``.
        image_directory: the folder with the images; None: ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: an annotation file is not what it should be; names the file and the entry.
    """
    root, image_root = check_folders(directory, image_directory)
    if not storage.exists(storage.join(root, "annotations", "val.json")):
        raise FileNotFoundError(
            f"{root}: no annotations/val.json; this is not CIRCO's layout. Set "
            "--config.data.directory to the folder that holds annotations"
        )
    splits = {"val": _read_annotations(root, "val")}
    if storage.exists(storage.join(root, "annotations", "test.json")):
        splits["test"] = _read_annotations(root, "test")
    folder = next(
        (
            path
            for path in (storage.join(image_root, name) for name in _FOLDERS)
            if storage.is_folder(path)
        ),
        image_root,
    )
    listed, source = _read_gallery(root, image_root, folder)
    # An image that only an annotation names belongs to the gallery too, and counts as missing.
    named = dict.fromkeys(
        i for qs in splits.values() for q in qs for i in (q.reference, *q.targets)
    )
    gallery = tuple(dict.fromkeys([*listed, *named]))
    val = Evaluation(PROTOCOLS["circo/val"], {"all": gallery}, splits["val"])
    unlabelled = {}
    if "test" in splits:
        unlabelled["test"] = Evaluation(PROTOCOLS["circo/test"], {"all": gallery}, splits["test"])
    records = Records(
        name="circo",
        layout=f"annotations of {', '.join(splits)}, gallery from {source}",
        image_directory=image_root,
        train=FixedTriplets(()),
        evaluations={"val": (val,)},
        unlabelled=unlabelled,
        vocabulary_captions=(),
    )
    images = {i: Image(i, storage.join(folder, f"{i}.jpg")) for i in records.all_image_ids()}
    return records.with_images(images)


def _read_annotations(root: str, split: str) -> tuple[Query, ...]:
    file = storage.join(root, "annotations", f"{split}.json")
    keys = {
        "id": int,
        "reference_img_id": int,
        "relative_caption": str,
        "shared_concept": str,
    }
    if split == "val":
        keys |= {"target_img_id": int, "gt_img_ids": list}
    entries = read_entries(file, keys)
    check_unique((entry["id"] for entry in entries), file, "id")
    queries = []
    for number, entry in enumerate(entries):
        where = f"{file}: entry {number}"
        targets = ()
        if split == "val":
            targets = tuple(dict.fromkeys(_image_id(i, where) for i in entry["gt_img_ids"]))
            if _image_id(entry["target_img_id"], where) not in targets:
                raise DataError(f"{where}: its target_img_id is not among its gt_img_ids")
        reference = _image_id(entry["reference_img_id"], where)
        caption = check_caption(entry["relative_caption"], where)
        concept = check_caption(entry["shared_concept"], where)
        name = str(entry["id"])
        queries.append(
            Query(
                id=name,
                reference=reference,
                captions=(caption,),
                targets=targets,
                category="all",
                annotation=name,
                concept=concept,
            )
        )
    return tuple(queries)


def _image_id(number: Any, where: str) -> str:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < _MOST:
        raise DataError(
            f"{where}: an image id is a whole number of up to 12 digits, not {shown(number)}"
        )
    return f"{number:012d}"


def find_gallery_list(directory: str, image_directory: str | None = None) -> str | None:
    """Return COCO's list of the gallery, in the folder of the annotations or images, or None."""
    roots = (image_directory or directory, directory)
    paths = (storage.join(root, name) for name in _LISTS for root in roots)
    return next((path for path in paths if storage.exists(path)), None)


def _read_gallery(root: str, image_root: str, folder: str) -> tuple[list[str], str]:
    """Return the gallery's ids, and where they come from, in words."""
    source = find_gallery_list(root, image_root)
    if source is not None:
        content = storage.read_json(source)
        check_keys(content, {"images": list}, source)
        ids = []
        for number, image in enumerate(content["images"]):
            where = f"{source}: image {number}"
            check_keys(image, {"id": int}, where)
            ids.append(_image_id(image["id"], where))
    else:
        source = f"the files in {folder}"
        ids = [match[1] for name in storage.names(folder) if (match := _FILE.fullmatch(name))]
    if len(ids) != GALLERY_IMAGES:
        _logger.warning(
            "%s: %d images of COCO's unlabeled2017, which has %d; numbers on another gallery "
            "cannot be compared with published ones",
            source,
            len(ids),
            GALLERY_IMAGES,
        )
    return ids, source


def _counts(records: Records, directory: str) -> Iterator[Count]:
    """Yield the numbers of queries, ground truths and gallery images."""
    (val,) = records.evaluations["val"]
    yield Count.compare("val queries", len(val.queries), 220)
    yield Count.compare("val ground truths", sum(len(q.targets) for q in val.queries), 916)
    test = records.unlabelled.get("test")
    queries = len(test.queries) if test else 0
    absent = "" if queries else "no annotations/test.json"
    yield Count.compare("test queries", queries, 800, absent)
    remark = (
        f"the gallery is what {GALLERY_LIST} lists or, without that file, what lies in the image "
        "folder"
    )
    yield Count.compare("gallery images", len(val.galleries["all"]), GALLERY_IMAGES, remark)


def _explain_unknown_gallery(
    directory: str, image_directory: str | None, evaluation: Evaluation
) -> str:
    """Return how to get the list of the gallery, or nothing where the gallery is known."""
    listed = find_gallery_list(directory, image_directory) is not None
    if listed or len(evaluation.galleries["all"]) >= GALLERY_IMAGES:
        return ""
    return (
        "Whether the ids are of CIRCO's gallery cannot be judged here: that needs COCO's list of "
        f"it, {storage.join(directory, 'annotations', GALLERY_LIST)}, which is in "
        "http://images.cocodataset.org/annotations/image_info_unlabeled2017.zip"
    )


# The rules are on the data set's own page. A query's list may hold its reference.
_SUBMISSION = Submission(
    split="test",
    server="https://circo.micc.unifi.it",
    query="query",
    image_type=int,
    max_bytes=5_000_000,  # the server states no limit; real files have 0.3 MB
    files=(
        AnswerFile(
            name="submission.json",
            header={},
            ranking="top",
            count=50,
            candidates="images of the gallery",
        ),
    ),
)

DATA_SET = DataSet(
    name="circo",
    read=read,
    mark=r"annotations/val\.json",
    evaluation_only=True,
    has_concepts=True,
    counts=_counts,
    submission=_SUBMISSION,
    explain_unknown_gallery=_explain_unknown_gallery,
    description=(
        "Zero-shot composed image retrieval with several right images a query; for evaluation "
        "only. The answers of the test split are known to the data set's server alone."
    ),
    homepage="https://github.com/miccunifi/CIRCO",
    citation="""
@inproceedings{baldrati2023zeroshot,
  title = {Zero-Shot Composed Image Retrieval with Textual Inversion},
  author = {Baldrati, Alberto and Agnolucci, Lorenzo and Bertini, Marco and Del Bimbo, Alberto},
  booktitle = {ICCV},
  year = {2023}
}""",
    manual_dir=(
        "`annotations`, and `COCO2017_unlabeled` with the images and COCO's "
        "`annotations/image_info_unlabeled2017.json`"
    ),
)
