"""FashionIQ's layout on disk -> records (docs/method.md, section 5).

The rendered garments use the same layout.

Annotations are ``captions/cap.<category>.<split>.json`` and
``image_splits/split.<category>.<split>.json``. Images may be ``images/ID.jpg``, ``images/ID.png``,
``<category>/ID.jpg`` or ``resized_image/<category>/ID.jpg``.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

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

PUBLISHED_ORDER = ("dress", "shirt", "toptee")
# "rc2" is no category: files of CIRR are named ``cap.rc2.<split>.json``.
_CAPTIONS = re.compile(r"cap\.(?P<category>(?!rc2\.)[^.]+)\.(?P<split>train|val)\.json")
_SPLITS = ("train", "val", "test")
# By category: train triplets and images, val triplets, images of the original and the val gallery.
_PUBLISHED = {
    "dress": (5_985, 11_452, 2_017, 3_817, 2_628),
    "shirt": (5_988, 19_036, 2_038, 6_346, 3_089),
    "toptee": (6_027, 16_121, 1_961, 5_373, 2_902),
}
_PUBLISHED_TEST = {"dress": 3_818, "shirt": 6_346, "toptee": 5_374}
_PUBLISHED_ENTRIES = 77_683  # in all split files
_PUBLISHED_IDS = 74_381  # among these entries
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG", ".JPEG")


def read(directory: str, image_directory: str | None = None) -> Records:
    """Read FashionIQ: all its categories, trained together, evaluated on val.

    See docs/method.md, sections 3 and 6.

    The training files may be absent: such a folder can still be evaluated on.

    Args:
        directory: the folder that holds ``captions`` and ``image_splits``.
        image_directory: the folder with the images; None: inside ``directory``.

    Raises:
        FileNotFoundError: a folder or file is missing; names it and what was expected.
        DataError: an annotation file is not what it should be; names the file and the entry.
    """
    layout = Layout(directory, image_directory)
    val = {category: layout.annotations(category, "val") for category in layout.categories}
    original = {c: layout.split(c, "val") for c in layout.categories}
    named = {
        c: tuple(dict.fromkeys(i for a in annotations for i in (a.reference, a.target)))
        for c, annotations in val.items()
    }
    orders = tuple(query for c, entries in val.items() for query in both_orders(entries, c))
    joined = tuple(
        dataclasses.replace(query, id=query.annotation) for query in orders if query.id[-1] == "0"
    )
    evaluations = tuple(
        Evaluation(PROTOCOLS[f"fashioniq/{name}"], gallery, queries)
        for name, gallery, queries in (
            ("original", original, orders),
            ("val", named, orders),
            ("original-joined", original, joined),
            ("original-averaged", original, orders),
        )
    )
    missing = [c for c in PUBLISHED_ORDER if c not in layout.categories]
    facts = {"categories_missing": missing} if missing else {}
    return layout.records("fashion_iq", {"val": evaluations}, facts)


@dataclasses.dataclass(frozen=True)
class Annotation:
    """An entry of a caption file; ``target`` is empty in a split without answers."""

    reference: str
    target: str
    captions: tuple[str, str]


class Layout:
    """A folder in FashionIQ's layout.

    Attributes:
        directory: the folder of the annotations.
        categories: categories with captions, the published ones first and in their order.
        trained: categories that have captions to train on.
    """

    def __init__(self, directory: str, image_directory: str | None = None):
        """Find the categories.

        Args:
            directory: the folder of the annotations.
            image_directory: the folder of the images; None: inside ``directory``.

        Raises:
            FileNotFoundError: there are no categories, or no such folder.
        """
        self.directory, self._image_directory = check_folders(directory, image_directory)
        captions = storage.join(self.directory, "captions")
        files = [match for n in storage.names(captions) if (match := _CAPTIONS.fullmatch(n))]
        present = {match["category"] for match in files}
        if not present:
            raise FileNotFoundError(
                f"{captions}: neither cap.<category>.train.json nor cap.<category>.val.json; this "
                "is not FashionIQ's layout. Set --config.data.directory to the folder that holds "
                "captions and image_splits"
            )
        for category in present:  # a file's name may be anything, and is part of messages
            check_path(category, captions)
        published = [c for c in PUBLISHED_ORDER if c in present]
        self.categories = (*published, *sorted(present - set(published)))
        trained = {match["category"] for match in files if match["split"] == "train"}
        self.trained = tuple(c for c in self.categories if c in trained)

    def annotations(self, category: str, split: str) -> list[Annotation]:
        """Return the entries of a caption file."""
        file = storage.join(self.directory, "captions", f"cap.{category}.{split}.json")
        keys = {"candidate": str, "target": str, "captions": list}
        if split == "test" and category in PUBLISHED_ORDER:  # the published test has no answers
            del keys["target"]
        annotations = []
        for number, entry in enumerate(read_entries(file, keys)):
            where = f"{file}: entry {number}"
            if len(entry["captions"]) != 2:
                raise DataError(
                    f"{where} must have two texts under 'captions', not {len(entry['captions'])}"
                )
            annotations.append(
                Annotation(
                    check_path(entry["candidate"], where),
                    check_path(entry["target"], where) if "target" in keys else "",
                    tuple(check_caption(caption, where) for caption in entry["captions"]),
                )
            )
        return annotations

    def split(self, category: str, split: str) -> tuple[str, ...]:
        """Return the image ids of a split file."""
        file = storage.join(self.directory, "image_splits", f"split.{category}.{split}.json")
        return read_image_list(file)

    def records(
        self,
        name: str,
        evaluations: Mapping[str, tuple[Evaluation, ...]],
        facts: Mapping[str, object],
    ) -> Records:
        """Assemble the records from the training files and some evaluations.

        Args:
            name: name of the data set, as FashionIQ is not the only one with this layout.
            evaluations: evaluations by split.
            facts: facts to be printed and stored with results.
        """
        train = {category: self.annotations(category, "train") for category in self.trained}
        triplets = FixedTriplets(
            tuple(
                Triplet(a.reference, a.target, captions, category)
                for category, annotations in train.items()
                for a in annotations
                for captions in (a.captions, a.captions[::-1])
            )
        )
        evaluated = [c for c in self.categories if c not in self.trained]
        records = Records(
            name=name,
            layout=f"captions and image_splits of {', '.join(self.categories)}"
            + (", to evaluate on alone" if evaluated else "")
            + (f": {', '.join(evaluated)}" if evaluated and train else ""),
            image_directory=self._image_directory,
            train=triplets,
            evaluations=evaluations,
            # In each file all first captions, then all second ones: the published ids' order.
            vocabulary_captions=tuple(
                a.captions[position]
                for annotations in train.values()
                for position in (0, 1)
                for a in annotations
            ),
            # A model that was trained on some of the categories only is marked as such.
            facts={**facts, "categories_not_trained": evaluated} if evaluated and train else facts,
            searched=self._image_folders(),
        )
        return records.with_images(self._find_images(records.image_ids(), records.searched))

    def _image_folders(self) -> tuple[str, ...]:
        root = self._image_directory
        return (
            storage.join(root, "images"),
            *(storage.join(root, "resized_image", c) for c in self.categories),
            *(storage.join(root, "images", c) for c in self.categories),
            *(storage.join(root, c) for c in self.categories),
            root,
        )

    def _find_images(self, ids: Mapping[str, None], folders: Sequence[str]) -> dict[str, Image]:
        """Return the images; one without a file gets the path at which it is looked for first."""
        files = find_images(ids, folders, _SUFFIXES)
        return {i: Image(i, files.get(i) or storage.join(folders[0], f"{i}.jpg")) for i in ids}


def both_orders(annotations: Sequence[Annotation], category: str) -> Iterator[Query]:
    """Return an annotation's two queries, one for each order of its captions.

    See docs/method.md, section 5.
    """
    for number, a in enumerate(annotations):
        for order, captions in enumerate((a.captions, a.captions[::-1])):
            annotation = f"{category}/{number}"
            yield Query(
                id=f"{annotation}/{order}",
                reference=a.reference,
                captions=captions,
                targets=(a.target,),
                category=category,
                annotation=annotation,
            )


def _counts(records: Records, directory: str) -> Iterator[Count]:
    """Yield the numbers of triplets, of images and of what all split files name together."""
    splits = {
        (category, split): _image_list(
            storage.join(directory, "image_splits", f"split.{category}.{split}.json")
        )
        for category in PUBLISHED_ORDER
        for split in _SPLITS
    }
    original, val = records.evaluations["val"][:2]
    for category, published in _PUBLISHED.items():
        annotations = {q.annotation for q in original.queries if q.category == category}
        here = (
            sum(t.category == category for t in records.train.items()) // 2,  # two caption orders
            len(splits[category, "train"]),
            len(annotations),
            len(original.galleries.get(category, ())),
            len(val.galleries.get(category, ())),
        )
        names = (
            *("train triplets", "train images", "val triplets"),
            *("images of gallery original", "images of gallery val"),
        )
        absent = "" if category in original.galleries else f"no captions/cap.{category}.train.json"
        for name, number, expected in zip(names, here, published, strict=True):
            yield Count.compare(f"{category} {name}", number, expected, absent)
    for category, expected in _PUBLISHED_TEST.items():
        absent = f"no image_splits/split.{category}.test.json; training does not need it"
        number = len(splits[category, "test"])
        yield Count.compare(f"{category} test images", number, expected, "" if number else absent)
    ids = {c: {i for split in _SPLITS for i in splits[c, split]} for c in PUBLISHED_ORDER}
    everything = set().union(*ids.values())
    entries = sum(map(len, splits.values()))
    yield Count.compare(
        "entries of all split files", entries, _PUBLISHED_ENTRIES, "the files above"
    )
    shared = len(ids["shirt"] & ids["toptee"])
    remark = f"{shared:,} ids stand in files of both shirt and toptee: those are no missing images"
    yield Count("image ids in them", len(everything), _PUBLISHED_IDS, remark if shared else "")


def _image_list(file: str) -> tuple[str, ...]:
    """Return the ids of a file that reading does not need; none where it is absent or broken."""
    try:
        return read_image_list(file)
    except (ValueError, OSError):
        return ()


DATA_SET = DataSet(
    name="fashion_iq",
    aliases=("fashioniq",),
    read=read,
    mark=r"captions/cap\.(?!rc2\.)[^./]+\.(?:train|val)\.json",
    training_files="captions/cap.<category>.train.json",
    suffixes=_SUFFIXES,
    counts=_counts,
    description=(
        "Composed image retrieval of dresses, shirts and tops: a reference image and two captions "
        "lead to a target image. The answers of the test split are not public."
    ),
    homepage="https://github.com/XiaoxiaoGuo/fashion-iq",
    citation="""
@inproceedings{wu2021fashioniq,
  title = {Fashion {IQ}: A New Dataset Towards Retrieving Images by Natural Language Feedback},
  author = {Wu, Hui and Gao, Yupeng and Guo, Xiaoxiao and Al-Halah, Ziad and Rennie, Steven and
            Grauman, Kristen and Feris, Rogerio},
  booktitle = {CVPR},
  year = {2021}
}""",
    manual_dir=(
        "`captions` and `image_splits` of the project's repository, and the images (from their "
        "product pages, or a copy of somebody's) in `images`, `<category>` or "
        "`resized_image/<category>`"
    ),
)
