"""Fashion200k's layout on disk -> records, with its online sampling of training pairs.

See docs/method.md, section 5.

A folder holds ``labels/<category>_{train,test}_detect_all.txt`` (path, detection score, caption;
tab-separated), ``test_queries.txt`` beside ``labels`` or in the image folder, and images under
``women/``; a leading ``women/`` may be present or absent in labels, queries and folders.
"""

import collections
from collections.abc import Iterable, Iterator, Set
from typing import ClassVar

import numpy as np

from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.readers.annotations import (
    check_caption,
    check_folders,
    check_path,
    find_base,
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

PUBLISHED_ORDER = ("dress", "skirt", "jacket", "pants", "top")
_SUFFIX = "_{split}_detect_all.txt"
_PREFIX = "women/"
_MARKS = {".": "dotmark", "?": "questionmark", "&": "andmark", "*": "starmark"}
_SAMPLING = 0x200  # separates this stream of random numbers from others with the same seed


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read Fashion200k: pairs are sampled online from train, and queries searched in test.

    The label files of train may be absent: such a folder can still be evaluated on.

    Args:
        directory: the folder that holds ``labels``.
        image_directory: the folder with the images; None: ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: a line is not what it should be; names the file and the line.
    """
    root, image_root = check_folders(directory, image_directory)
    train = _read_labels(root, "train")
    test = _read_labels(root, "test")
    queries_file = _find_queries(root, image_root)
    gallery = tuple(test)
    base = find_base((storage.join(image_root, "women"), image_root), gallery)
    evaluation = Evaluation(
        PROTOCOLS["fashion200k"], {"all": gallery}, _read_queries(queries_file, test)
    )
    labels = "labels" if train else "labels to evaluate on alone"
    return Records(
        name="fashion200k",
        layout=f"{labels}, {queries_file}, images below {base}",
        image_directory=image_root,
        train=_training_pairs(root, train) if train else FixedTriplets(()),
        evaluations={"val": (evaluation,)},
        # The raw captions: "dotmark" and the like are unknown words in the published vocabulary.
        vocabulary_captions=tuple(train.values()),
        images={i: Image(i, storage.join(base, i)) for i in (*train, *test)},
        extra_special=("replace", "with"),
    )


def replace_marks(caption: str) -> str:
    """Spell out the marks that the tokenizer would drop: "." becomes "dotmark" and so on."""
    for mark, word in _MARKS.items():
        caption = caption.replace(mark, word)
    return caption


def parents(caption: str) -> list[str]:
    """Return a caption's parents: for each word, the caption without that word's letters."""
    without = (caption.replace(word, "").replace("  ", " ").strip() for word in caption.split())
    return list(dict.fromkeys(without))


def modification(source: str, target: str) -> str:
    """Return "replace A with B", the first words in which two captions differ.

    See docs/method.md, section 5.
    """

    def first_absent(words: list[str], others: list[str]) -> str:
        return next((word for word in words if word not in others), words[-1])

    words, others = source.split(), target.split()
    return f"replace {first_absent(words, others)} with {first_absent(others, words)}"


class SampledPairs:
    """Training pairs drawn online: one pair for each training image and epoch.

    See docs/method.md, section 5.

    Two captions with a common parent differ in one word; an image with such a caption can be
    modified.
    """

    unit: ClassVar[str] = "images"
    stored_as: ClassVar[str] = "captions"

    def __init__(self, captions: dict[str, str]):
        """Index the captions by parent.

        Args:
            captions: caption of each image id, marks replaced.

        Raises:
            DataError: no two captions differ in one word.
        """
        self._captions = captions
        self._ids = tuple(captions)
        self._images: dict[str, list[str]] = collections.defaultdict(list)
        for image, caption in captions.items():
            self._images[caption].append(image)
        children: dict[str, list[str]] = collections.defaultdict(list)
        for caption in self._images:
            for parent in parents(caption):
                children[parent].append(caption)
        self._children = {p: c for p, c in children.items() if len(c) >= 2}
        self._parents = {
            caption: [p for p in parents(caption) if p in self._children]
            for caption in self._images
        }
        self._modifiable = tuple(i for i in self._ids if self._parents[captions[i]])
        if not self._modifiable:
            raise DataError("no two training captions differ in one word: no pair can be sampled")

    @classmethod
    def from_items(cls, items: Iterable[Triplet]) -> "SampledPairs":
        """Build the source from each image with its own caption."""
        return cls({item.reference: item.captions[0] for item in items})

    def __len__(self) -> int:
        """Return the number of training images: each is a source once an epoch."""
        return len(self._ids)

    def draw(self, seed: int, epoch: int, item: int) -> Triplet:
        """Draw a pair whose source is image ``item``, or another image if that has no sibling."""
        rng = np.random.default_rng([seed, _SAMPLING, epoch, item])

        def choose(options: list | tuple) -> str:
            return options[int(rng.integers(len(options)))]

        source = self._ids[item]
        if not self._parents[self._captions[source]]:
            source = choose(self._modifiable)
        caption = self._captions[source]
        siblings = self._children[choose(self._parents[caption])]
        other = choose([c for c in siblings if c != caption])
        return Triplet(source, choose(self._images[other]), (modification(caption, other),))

    def items(self) -> Iterable[Triplet]:
        """Return each image with its own caption and an empty target, which `draw` chooses."""
        return (Triplet(image, "", (caption,)) for image, caption in self._captions.items())

    def image_ids(self) -> Iterable[str]:
        """Return the ids of all training images."""
        return self._ids

    def longest_texts(self) -> Iterable[tuple[str, ...]]:
        """Return a text for every word, with the word before and after the change."""
        words = {word for caption in self._images for word in caption.split()}
        return {(f"replace {word} with {word}",) for word in words}

    def without(self, missing: Set[str]) -> "SampledPairs":
        """Return the source without some images."""
        return SampledPairs({i: c for i, c in self._captions.items() if i not in missing})


def _training_pairs(root: str, captions: dict[str, str]) -> SampledPairs:
    try:
        return SampledPairs({i: replace_marks(caption) for i, caption in captions.items()})
    except DataError as error:
        raise DataError(f"{storage.join(root, 'labels')}: {error}") from error


def _lines(file: str) -> list[str]:
    """Return a file's lines; str.splitlines would also split at exotic marks in a caption."""
    return storage.read_text(file).replace("\r\n", "\n").removesuffix("\n").split("\n")


def _normalize_path(path: str, where: str) -> str:
    """Return an image's id: its path without the ``women/`` that may lead it."""
    return check_path(path, where).removeprefix(_PREFIX)


def _read_labels(root: str, split: str) -> dict[str, str]:
    """Return the caption of each image, label files in the published order.

    See docs/method.md, section 5.

    Where only evaluation is possible, the train split is empty.
    """
    suffix = _SUFFIX.format(split=split)
    folder = storage.join(root, "labels")
    present = {n.removesuffix(suffix) for n in storage.names(folder) if n.endswith(suffix)}
    if not present and split == "test":
        raise FileNotFoundError(
            f"{folder}: no <category>{suffix}; this is not Fashion200k's layout. Set "
            "--config.data.directory to the folder that holds labels"
        )
    for category in present:  # a file's name may be anything, and is part of messages
        check_path(f"{category}{suffix}", folder)
    published = [c for c in PUBLISHED_ORDER if c in present]
    captions: dict[str, str] = {}
    for category in (*published, *sorted(present - set(published))):
        file = storage.join(folder, f"{category}{suffix}")
        for number, line in enumerate(_lines(file), 1):
            where = f"{file}, line {number}"
            fields = line.split("\t")
            if len(fields) != 3 or not fields[2].strip():
                raise DataError(f"{where}: expected path, score and caption with tabs between")
            caption = check_caption(fields[2].strip(), where)
            captions.setdefault(_normalize_path(fields[0], where), caption)
    return captions


def _find_queries(root: str, image_root: str) -> str:
    folders = dict.fromkeys((root, image_root, storage.join(image_root, "women")))
    for folder in folders:
        if storage.exists(file := storage.join(folder, "test_queries.txt")):
            return file
    raise FileNotFoundError(
        f"no test_queries.txt in {' or '.join(folders)}; it comes with the data set of the TIRG "
        "paper"
    )


def _read_queries(file: str, captions: dict[str, str]) -> tuple[Query, ...]:
    """Return the queries; every image with the caption of a query's target is correct."""
    same: dict[str, list[str]] = collections.defaultdict(list)
    for image, caption in captions.items():
        same[caption].append(image)
    # All queries with one target caption share a tuple, as it may have thousands of images.
    right = {caption: tuple(images) for caption, images in same.items()}
    queries = []
    for number, line in enumerate(_lines(file), 1):
        where = f"{file}, line {number}"
        fields = [_normalize_path(field, where) for field in line.split()]
        if len(fields) != 2:
            raise DataError(f"{where}: expected a source and a target path")
        unknown = [field for field in fields if field not in captions]
        if unknown:
            raise DataError(f"{where}: {shown(unknown[0])} is in no test label file")
        source, target = fields
        text = modification(replace_marks(captions[source]), replace_marks(captions[target]))
        name = f"{number - 1}"
        queries.append(
            Query(
                id=name,
                reference=source,
                captions=(text,),
                targets=right[captions[target]],
                category="all",
                annotation=name,
            )
        )
    return tuple(queries)


def _counts(records: Records, directory: str) -> Iterator[Count]:
    """Yield the numbers of queries and, as the publication rounds them, of training images."""
    (evaluation,) = records.evaluations["val"]
    labels = storage.names(storage.join(directory, "labels"))
    suffix = _SUFFIX.format(split="train")
    present = {name.removesuffix(suffix) for name in labels if name.endswith(suffix)}
    absent = [c for c in PUBLISHED_ORDER if c not in present]
    remark = f"no labels of {', '.join(absent)}" if absent else ""
    thousands = round(len(records.train) / 1000)
    yield Count.compare("train images, in thousands", thousands, 172, remark)
    yield Count.compare("test queries", len(evaluation.queries), 33_480)


DATA_SET = DataSet(
    name="fashion200k",
    read=read,
    mark=r"labels/[^/]+_test_detect_all\.txt",
    training=SampledPairs,
    training_files="labels/<category>_train_detect_all.txt",
    counts=_counts,
    description=(
        "Garments of five categories with captions. A query replaces one word of an image's "
        "caption, and every image with that caption is right. An example of the train split is an "
        "image with its caption: training draws its target and text anew each epoch."
    ),
    homepage="https://github.com/xthan/fashion-200k",
    citation="""
@inproceedings{han2017automatic,
  title = {Automatic Spatially-aware Fashion Concept Discovery},
  author = {Han, Xintong and Wu, Zuxuan and Huang, Phoenix X. and Zhang, Xiao and Zhu, Menglong and
            Li, Yuan and Zhao, Yang and Davis, Larry S.},
  booktitle = {ICCV},
  year = {2017}
}
@inproceedings{vo2019composing,
  title = {Composing Text and Image for Image Retrieval - An Empirical Odyssey},
  author = {Vo, Nam and Jiang, Lu and Sun, Chen and Murphy, Kevin and Li, Li-Jia and Fei-Fei, Li and
            Hays, James},
  booktitle = {CVPR},
  year = {2019}
}""",
    manual_dir="`labels`, the images in `women`, and `test_queries.txt` of the TIRG paper",
)
