"""The Shoes data set on disk -> records (docs/method.md, section 5).

Raw annotations are ``relative_captions_shoes.json``, ``train_im_names.txt`` and
``eval_im_names.txt``, with bare file names. Prepared annotations are ``triplet.{train,val}.json``
and ``split.{train,val}.json``, with paths relative to the image folder. Images are
``womens_*/<number>/img_*.jpg``, at the top of the image folder or under ``womens/``. An image's id
is its bare file name.
"""

from collections.abc import Iterator, Set

from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.readers.annotations import (
    check_caption,
    check_folders,
    check_path,
    find_images,
    read_entries,
    read_image_list,
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

_RAW = "relative_captions_shoes.json"
_NAME_LISTS = {"train": "train_im_names.txt", "val": "eval_im_names.txt"}

_Splits = dict[str, tuple[str, ...]]
_Triplets = dict[str, tuple[Triplet, ...]]


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read Shoes, from the raw lists or the prepared files.

    The training files may be absent: such a folder can still be evaluated on.

    Args:
        directory: the folder that holds the annotations.
        image_directory: the folder with the images; None: ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: an annotation file is not what it should be; names the file and the entry.
    """
    root, image_root = check_folders(directory, image_directory)
    here = set(storage.names(root))
    if _RAW in here:
        layout, (splits, triplets) = "raw lists", _read_raw(root, here)
    elif "triplet.val.json" in here or "triplet.train.json" in here:
        layout, (splits, triplets) = "prepared triplets and splits", _read_prepared(root, here)
    else:
        raise FileNotFoundError(
            f"{root}: neither {_RAW} nor triplet.val.json; this is not the layout of Shoes. Set "
            "--config.data.directory to the folder that holds the annotations"
        )
    queries = tuple(
        Query(
            id=f"{number}",
            reference=t.reference,
            captions=t.captions,
            targets=(t.target,),
            category="all",
            annotation=f"{number}",
        )
        for number, t in enumerate(triplets["val"])
    )
    evaluation = Evaluation(PROTOCOLS["shoes"], {"all": splits["val"]}, queries)
    train = triplets.get("train", ())
    base, folders = _image_folders(image_root)
    records = Records(
        name="shoes",
        layout=layout if "train" in triplets else f"{layout}, to evaluate on alone",
        image_directory=image_root,
        train=FixedTriplets(train),
        evaluations={"val": (evaluation,)},
        vocabulary_captions=tuple(t.captions[0] for t in train),
        searched=folders,
    )
    ids = records.image_ids()
    files = find_images(ids, folders)
    # The folder of an image without a file is unknown; the pattern says where the others are.
    expected = storage.join(base, "womens_*", "*")
    images = {i: Image(i, files.get(i) or storage.join(expected, i)) for i in ids}
    return records.with_images(images)


def _read_raw(root: str, here: Set[str]) -> tuple[_Splits, _Triplets]:
    """Return ids and triplets by split; a pair belongs to the split that has both of its names."""
    splits = {
        split: _read_names(storage.join(root, name))
        for split, name in _NAME_LISTS.items()
        if split == "val" or name in here
    }
    entries = _read_triplets(storage.join(root, _RAW))
    triplets = {}
    for split, names in splits.items():
        known = set(names)
        triplets[split] = tuple(t for t in entries if t.reference in known and t.target in known)
    return splits, triplets


def _read_prepared(root: str, here: Set[str]) -> tuple[_Splits, _Triplets]:
    """Return ids and triplets by split from files that are split already."""
    splits, triplets = {}, {}
    for split in _NAME_LISTS:
        if split == "train" and f"triplet.{split}.json" not in here:
            continue
        names = read_image_list(storage.join(root, f"split.{split}.json"))
        splits[split] = tuple(dict.fromkeys(map(_bare, names)))
        triplets[split] = _read_triplets(storage.join(root, f"triplet.{split}.json"))
    return splits, triplets


def _read_names(file: str) -> tuple[str, ...]:
    names = {}
    for number, line in enumerate(storage.read_text(file).split("\n"), 1):
        if line.strip():
            names[_bare(check_path(line.strip(), f"{file}, line {number}"))] = None
    if not names:
        raise DataError(f"{file}: must list image names, one a line")
    return tuple(names)


def _read_triplets(file: str) -> tuple[Triplet, ...]:
    keys = {"ReferenceImageName": str, "ImageName": str, "RelativeCaption": str}
    triplets = []
    for number, entry in enumerate(read_entries(file, keys)):
        where = f"{file}: entry {number}"
        reference, target = (_bare(check_path(entry[k], where)) for k in list(keys)[:2])
        triplets.append(
            Triplet(reference, target, (check_caption(entry["RelativeCaption"], where),))
        )
    return tuple(triplets)


def _bare(path: str) -> str:
    return path.rpartition("/")[2]


def _image_folders(root: str) -> tuple[str, tuple[str, ...]]:
    """Return the folder that holds ``womens_*``, and all folders that are searched for images."""
    base = storage.join(root, "womens") if "womens" in storage.names(root) else root
    kinds = [storage.join(base, n) for n in storage.names(base) if n.startswith("womens_")]
    folders = [storage.join(kind, n) for kind in kinds for n in storage.names(kind) if "." not in n]
    return base, (*folders, *kinds, base)


def _counts(records: Records, directory: str) -> Iterator[Count]:
    """Yield the numbers of triplets, also of those that lead nowhere, and of the gallery."""
    (evaluation,) = records.evaluations["val"]
    yield Count.compare("train triplets", len(records.train), 8_990)
    yield Count.compare("eval triplets", len(evaluation.queries), 1_761)
    yield Count.compare("images of the eval list", len(evaluation.galleries["all"]), 4_658)
    pairs = [(t.reference, (t.target,)) for t in records.train.items()]
    pairs += [(q.reference, q.targets) for q in evaluation.queries]
    same = sum(reference in targets for reference, targets in pairs)
    yield Count.compare("triplets with reference = target", same, 27)


DATA_SET = DataSet(
    name="shoes",
    read=read,
    mark=r"relative_captions_shoes\.json|triplet\.(?:train|val)\.json",
    training_files="train_im_names.txt, or triplet.train.json and split.train.json",
    counts=_counts,
    description=(
        "Composed image retrieval of women's shoes: a reference image and a relative caption lead "
        "to a target image."
    ),
    homepage="https://github.com/XiaoxiaoGuo/fashion-retrieval",
    citation="""
@inproceedings{guo2018dialog,
  title = {Dialog-based Interactive Image Retrieval},
  author = {Guo, Xiaoxiao and Wu, Hui and Cheng, Yu and Rennie, Steven and Tesauro, Gerald and
            Feris, Rogerio},
  booktitle = {NeurIPS},
  year = {2018}
}
@inproceedings{berg2010automatic,
  title = {Automatic Attribute Discovery and Characterization from Noisy Web Data},
  author = {Berg, Tamara L. and Berg, Alexander C. and Shih, Jonathan},
  booktitle = {ECCV},
  year = {2010}
}""",
    manual_dir=(
        "`relative_captions_shoes.json`, `train_im_names.txt` and `eval_im_names.txt`, or "
        "`triplet.*.json` and `split.*.json`; and the images of the Attribute Discovery data "
        "set, `womens_*/...`"
    ),
)
