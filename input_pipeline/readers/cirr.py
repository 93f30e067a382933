"""CIRR on disk -> records (docs/method.md, section 5).

A folder holds ``captions/cap.rc2.{train,val,test1}.json`` and
``image_splits/split.rc2.{train,val,test1}.json``, either directly or, as in the authors'
repository, in ``cirr/``. A split file gives each image's path relative to the image folder, or to
``images/`` or ``img_raw/`` in it; the image may also lie there without its numbered folder
(``train/34/``), or under its bare name.
"""

from collections.abc import Iterator, Mapping, Sequence

from cmap_jax.protocols import PROTOCOLS, AnswerFile, Submission
from input_pipeline import storage
from input_pipeline.readers.annotations import (
    check_caption,
    check_folders,
    check_keys,
    check_path,
    check_unique,
    find_base,
    find_images,
    read_entries,
    shown,
)
from input_pipeline.readers.data_set import Count, DataSet
from input_pipeline.records import (
    DataError,
    Evaluation,
    FixedTriplets,
    Image,
    Query,
    Records,
    Triplet,
)

_SPLITS = ("train", "val", "test1")


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read CIRR: train, val, and the unlabelled test1.

    Annotations of train and test1 may be absent: such a folder can still be evaluated on.

    Args:
        directory: the folder that holds ``captions`` and ``image_splits``.
        image_directory: the folder with the images; None: ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: an annotation file is not what it should be; names the file and the entry.
    """
    directory, image_root = check_folders(directory, image_directory)
    root = next(
        (
            folder
            for folder in (directory, storage.join(directory, "cirr"))
            if storage.exists(storage.join(folder, "captions", "cap.rc2.val.json"))
        ),
        None,
    )
    if root is None:
        raise FileNotFoundError(
            f"{directory}: no captions/cap.rc2.val.json; this is not CIRR's layout. Set "
            "--config.data.directory to the folder that holds captions and image_splits"
        )
    captions = set(storage.names(storage.join(root, "captions")))
    present = [split for split in _SPLITS if f"cap.rc2.{split}.json" in captions]
    entries = {split: _read_captions(root, split) for split in present}
    paths = {split: _read_split(root, split) for split in present}
    for split in present:
        _check_known(root, split, entries[split], paths[split])
    val = Evaluation(PROTOCOLS["cirr/val"], {"all": tuple(paths["val"])}, entries["val"])
    unlabelled = {}
    if "test1" in present:
        unlabelled["test1"] = Evaluation(
            PROTOCOLS["cirr/test1"], {"all": tuple(paths["test1"])}, entries["test1"]
        )
    bases = (image_root, *(storage.join(image_root, name) for name in ("images", "img_raw")))
    base = find_base(bases, paths["val"].values())
    path_of = {i: path for split in paths.values() for i, path in split.items()}
    tops = dict.fromkeys(path.partition("/")[0] for path in path_of.values() if "/" in path)
    train = tuple(Triplet(q.reference, q.targets[0], q.captions) for q in entries.get("train", ()))
    records = Records(
        name="cirr",
        layout=f"captions of {', '.join(present)}, images below {base}",
        image_directory=image_root,
        train=FixedTriplets(train),
        evaluations={"val": (val,)},
        unlabelled=unlabelled,
        vocabulary_captions=tuple(t.captions[0] for t in train),
        searched=(*(storage.join(b, top) for b in bases for top in tops), *bases),
    )
    expected = {i: path_of[i] for i in records.all_image_ids()}
    present = _find_images(expected, bases)
    images = {i: Image(i, present.get(i) or storage.join(base, p)) for i, p in expected.items()}
    return records.with_images(images)


def _find_images(paths: Mapping[str, str], bases: Sequence[str]) -> dict[str, str]:
    """Return the files of images: by path, by path without inner folders, or by bare name.

    Args:
        paths: relative path of each image, by id.
        bases: folders that the paths may start from.
    """
    files: dict[str, str] = {}
    for kept in (None, 1, 0):  # number of folders kept of the path
        lost = {}
        for i, path in paths.items():
            if i not in files:
                *folders, name = path.split("/")
                lost["/".join((*folders[:kept], name))] = i
        files |= {lost[path]: file for path, file in find_images(lost, bases).items()}
    return files


def _read_captions(root: str, split: str) -> tuple[Query, ...]:
    """Return a split's queries; triplets of the train split have the same form."""
    file = storage.join(root, "captions", f"cap.rc2.{split}.json")
    keys = {"pairid": int, "reference": str, "caption": str, "img_set": dict}
    if split != "test1":
        keys["target_hard"] = str
    queries = []
    entries = read_entries(file, keys)
    check_unique((entry["pairid"] for entry in entries), file, "pairid")
    for number, entry in enumerate(entries):
        where = f"{file}: entry {number}"
        check_keys(entry["img_set"], {"members": list}, f"{where}: img_set")
        # Each member once: the query is ranked among the others.
        members = tuple(
            dict.fromkeys(check_path(m, f"{where}: img_set") for m in entry["img_set"]["members"])
        )
        targets = (check_path(entry["target_hard"], where),) if split != "test1" else ()
        for image in (entry["reference"], *targets):
            if image not in members:
                raise DataError(f"{where}: {shown(image)} is not among the members of its img_set")
        pair = str(entry["pairid"])
        caption = check_caption(entry["caption"], where)
        queries.append(
            Query(
                id=pair,
                reference=entry["reference"],
                captions=(caption,),
                targets=targets,
                category="all",
                annotation=pair,
                subset=members,
            )
        )
    return tuple(queries)


def _read_split(root: str, split: str) -> dict[str, str]:
    """Return the path of each of a split's images, by id."""
    file = storage.join(root, "image_splits", f"split.rc2.{split}.json")
    paths = storage.read_json(file)
    if not isinstance(paths, dict) or not paths:
        raise DataError(f"{file}: must be an object of image names and paths, not {shown(paths)}")
    checked = {}
    for name, path in paths.items():
        where = f"{file}: entry {shown(name)}"
        relative = check_path(path, where)
        checked[check_path(name, where)] = relative.removeprefix("./")
    return checked


def _check_known(
    root: str, split: str, queries: tuple[Query, ...], paths: Mapping[str, str]
) -> None:
    """Refuse a query with an image that the split file does not list, as its path is unknown."""
    file = storage.join(root, "captions", f"cap.rc2.{split}.json")
    for number, query in enumerate(queries):
        for image in query.subset:  # these include reference and target
            if image not in paths:
                raise DataError(
                    f"{file}: entry {number} names {shown(image)}, which split.rc2.{split}.json "
                    "does not have"
                )


def _counts(records: Records, directory: str) -> Iterator[Count]:
    """Yield the numbers of queries and images of each split."""
    (val,) = records.evaluations["val"]
    absent = "" if len(records.train) else "no captions/cap.rc2.train.json"
    yield Count.compare("train triplets", len(records.train), 28_225, absent)
    roots = (directory, storage.join(directory, "cirr"))
    file = "image_splits/split.rc2.train.json"
    images = max(_length(storage.join(root, file)) for root in roots)
    yield Count.compare("train images", images, 16_939, "" if images else f"no {file}")
    yield Count.compare("val queries", len(val.queries), 4_181)
    yield Count.compare("val images", len(val.galleries["all"]), 2_297)
    test = records.unlabelled.get("test1")
    queries, images = (len(test.queries), len(test.galleries["all"])) if test else (0, 0)
    absent = "" if queries else "no captions/cap.rc2.test1.json; training does not need it"
    yield Count.compare("test1 queries", queries, 4_148, absent)
    yield Count.compare("test1 images", images, 2_315, absent)


def _length(file: str) -> int:
    """Return the number of entries of a file that no reader needs; 0 if absent or broken."""
    try:
        content = storage.read_json(file)
    except (ValueError, OSError):
        return 0
    return len(content) if isinstance(content, dict) else 0


# The rules are on the data set's own page. The reference is in neither list of a query.
_VERSION = "rc2"
_SUBMISSION = Submission(
    split="test1",
    server="https://cirr.cecs.anu.edu.au",
    query="pair",
    image_type=str,
    max_bytes=5_000_000,  # the server's limit; real files have 4.2 and 0.3 MB
    files=(
        AnswerFile(
            name="recall.json",
            header={"version": _VERSION, "metric": "recall"},
            ranking="top",
            count=50,
            candidates="images of the split",
        ),
        AnswerFile(
            name="recall_subset.json",
            header={"version": _VERSION, "metric": "recall_subset"},
            ranking="subset_top",
            count=3,
            candidates="members of its set",
        ),
    ),
)

DATA_SET = DataSet(
    name="cirr",
    read=read,
    mark=r"captions/cap\.rc2\.val\.json",
    training_files="captions/cap.rc2.train.json and image_splits/split.rc2.train.json",
    counts=_counts,
    submission=_SUBMISSION,
    description=(
        "Composed image retrieval on real-life images: a reference image and a caption lead to a "
        "target image, and each query also ranks among the other images of its set. The answers "
        "of test1 are known to the data set's server alone."
    ),
    homepage="https://github.com/Cuberick-Orion/CIRR",
    citation="""
@inproceedings{liu2021image,
  title = {Image Retrieval on Real-Life Images with Pre-Trained Vision-and-Language Models},
  author = {Liu, Zheyuan and Rodriguez-Opazo, Cristian and Teney, Damien and Gould, Stephen},
  booktitle = {ICCV},
  year = {2021}
}""",
    manual_dir=(
        "`captions` and `image_splits`, there or in `cirr`, and the images of NLVR2 there, in "
        "`images` or in `img_raw`"
    ),
)
