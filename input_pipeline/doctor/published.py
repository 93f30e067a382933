"""How large the published data sets are, and how a folder differs from that."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from input_pipeline import storage
from input_pipeline.doctor.findings import Finding, number
from input_pipeline.readers import fashion200k
from input_pipeline.readers.annotations import read_image_list
from input_pipeline.readers.circo import GALLERY_IMAGES
from input_pipeline.readers.fashion_iq import PUBLISHED_ORDER
from input_pipeline.records import Evaluation, FixedTriplets, Records


@dataclasses.dataclass(frozen=True)
class Count:
    """A number of a data set, as found and as published.

    Attributes:
        what: what is counted.
        found: in the folder.
        published: in the published data set.
        remark: why the two differ, or what the number is easily taken for.
    """

    what: str
    found: int
    published: int
    remark: str = ""

    @property
    def agrees(self) -> bool:
        """Tell whether the folder has what was published."""
        return self.found == self.published

    def to_dict(self) -> dict:
        """Return the fields, for JSON."""
        return dataclasses.asdict(self)


def compare(records: Records, directory: str) -> tuple[Count, ...]:
    """Return a data set's counts beside the published ones; none where nothing was published.

    Args:
        records: the whole data set as read.
        directory: the folder of the annotations.
    """
    count = _COUNTS.get(records.name)
    return tuple(count(records, directory)) if count else ()


def count_findings(name: str, counts: Sequence[Count]) -> Iterator[Finding]:
    """Yield whether a data set is another than the published one, or not all of it."""
    differing = [c for c in counts if not c.agrees]
    if not differing:
        return
    items = tuple(
        f"{c.what}: {c.found:,}, published {c.published:,}: {c.remark}".removesuffix(": ")
        for c in differing
    )
    if len(differing) == len(counts):
        yield Finding(
            "not_published",
            "note",
            f"this is not the published {name}: none of its {len(counts)} counts agrees",
            len(differing),
            items,
            "nothing to do if that is so; numbers cannot be compared with published ones",
        )
    else:
        yield Finding(
            "count",
            "warning",
            f"{number(len(differing), 'count')} of {len(counts)} not as published",
            len(differing),
            items,
            "restore what these lines name; numbers on other data cannot be compared with those "
            "published",
        )


# By category: train triplets and images, val triplets, images of the original and the val gallery.
_FASHION_IQ = {
    "dress": (5_985, 11_452, 2_017, 3_817, 2_628),
    "shirt": (5_988, 19_036, 2_038, 6_346, 3_089),
    "toptee": (6_027, 16_121, 1_961, 5_373, 2_902),
}
_FASHION_IQ_TEST = {"dress": 3_818, "shirt": 6_346, "toptee": 5_374}
_FASHION_IQ_ENTRIES = 77_683  # of all split files
_FASHION_IQ_IDS = 74_381  # among them


def _fashion_iq(records: Records, directory: str) -> Iterator[Count]:
    splits = {
        (category, split): _image_list(
            storage.join(directory, "image_splits", f"split.{category}.{split}.json")
        )
        for category in PUBLISHED_ORDER
        for split in ("train", "val", "test")
    }
    original, val = records.evaluations["val"][:2]
    for category, published in _FASHION_IQ.items():
        annotations = {q.annotation for q in original.queries if q.category == category}
        found = (
            sum(t.category == category for t in _triplets(records)) // 2,  # one a caption order
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
        for name, there, expected in zip(names, found, published, strict=True):
            yield _count(f"{category} {name}", there, expected, absent)
    for category, expected in _FASHION_IQ_TEST.items():
        absent = f"no image_splits/split.{category}.test.json; training does not need it"
        found = len(splits[category, "test"])
        yield _count(f"{category} test images", found, expected, "" if found else absent)
    ids = {c: {i for s in ("train", "val", "test") for i in splits[c, s]} for c in PUBLISHED_ORDER}
    everything = set().union(*ids.values())
    entries = sum(map(len, splits.values()))
    yield _count("entries of all split files", entries, _FASHION_IQ_ENTRIES, "the files above")
    shared = len(ids["shirt"] & ids["toptee"])
    remark = f"{shared:,} ids stand in files of both shirt and toptee: those are no missing images"
    yield Count("image ids in them", len(everything), _FASHION_IQ_IDS, remark if shared else "")


def _shoes(records: Records, directory: str) -> Iterator[Count]:
    (evaluation,) = records.evaluations["val"]
    yield _count("train triplets", len(records.train), 8_990)
    yield _count("eval triplets", len(evaluation.queries), 1_761)
    yield _count("images of the eval list", len(evaluation.galleries["all"]), 4_658)
    pairs = [(t.reference, (t.target,)) for t in _triplets(records)]
    pairs += [(q.reference, q.targets) for q in evaluation.queries]
    same = sum(reference in targets for reference, targets in pairs)
    yield _count("triplets with reference = target", same, 27)


def _fashion200k(records: Records, directory: str) -> Iterator[Count]:
    (evaluation,) = records.evaluations["val"]
    labels = storage.names(storage.join(directory, "labels"))
    suffix = "_train_detect_all.txt"
    found = {name.removesuffix(suffix) for name in labels if name.endswith(suffix)}
    absent = [c for c in fashion200k.PUBLISHED_ORDER if c not in found]
    remark = f"no labels of {', '.join(absent)}" if absent else ""
    thousands = round(len(records.train) / 1000)
    yield _count("train images, in thousands", thousands, 172, remark)
    yield _count("test queries", len(evaluation.queries), 33_480)


def _cirr(records: Records, directory: str) -> Iterator[Count]:
    (val,) = records.evaluations["val"]
    absent = "" if len(records.train) else "no captions/cap.rc2.train.json"
    yield _count("train triplets", len(records.train), 28_225, absent)
    places = (directory, storage.join(directory, "cirr"))
    file = "image_splits/split.rc2.train.json"
    images = max(_length(storage.join(place, file)) for place in places)
    yield _count("train images", images, 16_939, "" if images else f"no {file}")
    yield _count("val queries", len(val.queries), 4_181)
    yield _count("val images", len(val.galleries["all"]), 2_297)
    queries, images = _sizes(records.unlabelled.get("test1"))
    absent = "" if queries else "no captions/cap.rc2.test1.json; training does not need it"
    yield _count("test1 queries", queries, 4_148, absent)
    yield _count("test1 images", images, 2_315, absent)


def _circo(records: Records, directory: str) -> Iterator[Count]:
    (val,) = records.evaluations["val"]
    yield _count("val queries", len(val.queries), 220)
    yield _count("val ground truths", sum(len(q.targets) for q in val.queries), 916)
    queries, _ = _sizes(records.unlabelled.get("test"))
    yield _count("test queries", queries, 800, "" if queries else "no annotations/test.json")
    remark = (
        "the gallery is what image_info_unlabeled2017.json lists or, without that file, what lies "
        "in the image folder"
    )
    yield _count("gallery images", len(val.galleries["all"]), GALLERY_IMAGES, remark)


def _sizes(evaluation: Evaluation | None) -> tuple[int, int]:
    """Return the numbers of queries and gallery images of a split that may be absent."""
    return (len(evaluation.queries), len(evaluation.galleries["all"])) if evaluation else (0, 0)


_COUNTS: dict[str, Callable[[Records, str], Iterator[Count]]] = {
    "fashion_iq": _fashion_iq,
    "shoes": _shoes,
    "fashion200k": _fashion200k,
    "cirr": _cirr,
    "circo": _circo,
}


def _count(what: str, found: int, published: int, remark: str = "") -> Count:
    """Return a count; the remark is for where the numbers differ."""
    if found == published:
        return Count(what, found, published)
    difference = "fewer" if found < published else "more"
    return Count(what, found, published, remark or f"{abs(found - published):,} {difference}")


def _triplets(records: Records) -> tuple:
    return records.train.triplets if isinstance(records.train, FixedTriplets) else ()


def _image_list(file: str) -> tuple[str, ...]:
    """Return the ids of a file that no reader needs; none where it is absent or broken."""
    try:
        return read_image_list(file)
    except (ValueError, OSError):
        return ()


def _length(file: str) -> int:
    """Return the number of entries of a file that no reader needs; 0 if absent or broken."""
    try:
        content = storage.read_json(file)
    except (ValueError, OSError):
        return 0
    return len(content) if isinstance(content, dict) else 0
