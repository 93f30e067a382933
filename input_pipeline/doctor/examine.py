"""Looks at a data folder before training does, and explains it.

    report = examine("fashion_iq", "fashion-iq")
    report.verdict()             # "ready", or "training would fail: ..."
    report.findings              # problems, the worst first, each with its remedy

Images are judged by the check that training makes itself, so what is found here and what training
refuses, or leaves out under ``missing_images="skip"``, is the same.
"""

import collections
import dataclasses
import re
import time
from collections.abc import Collection, Iterator, Sequence, Set
from typing import Any

from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.remedies import spelled
from input_pipeline import prepared, storage
from input_pipeline.doctor import published
from input_pipeline.doctor.findings import (
    Annotation,
    Finding,
    caption_findings,
    gallery_findings,
    leak_findings,
    list_annotations,
    number,
    read_splits,
    repeated_row_findings,
    same_image_findings,
    word_findings,
)
from input_pipeline.doctor.image_findings import (
    duplicate_findings,
    image_findings,
    near_name_findings,
    trait_findings,
)
from input_pipeline.doctor.published import Count
from input_pipeline.garments import reader as garments_reader
from input_pipeline.images import near_names as near_names_lib
from input_pipeline.images.check import check_images, find_traits
from input_pipeline.records import DataError, Evaluation, Records
from input_pipeline.registry import data_set_name, garments_settings, read_folder, training_files

# What `cmap doctor` takes in place of the config's fields.
SPELLING = {
    "data.directory": "the argument DIR",
    "data.image_directory": "--images",
    "data.near_names=accept": "--near-names",
}
BATCH_SIZE = 128  # of the configs

_SEVERITIES = ("error", "warning", "note")
# The file by which each layout is known.
_MARKS = {
    "cirr": r"captions/cap\.rc2\.val\.json",
    "fashion_iq": r"captions/cap\.(?!rc2\.)[^./]+\.(?:train|val)\.json",
    "shoes": r"relative_captions_shoes\.json|triplet\.(?:train|val)\.json",
    "fashion200k": r"labels/[^/]+_test_detect_all\.txt",
    "circo": r"annotations/val\.json",
    "folder": r"val\.(?:csv|jsonl)",
}


@dataclasses.dataclass(frozen=True)
class Share:
    """How many of something are usable: their images are there and can be read."""

    total: int
    usable: int


@dataclasses.dataclass(frozen=True)
class ProtocolShare:
    """What is left of an evaluation.

    Attributes:
        name: of the protocol.
        queries: those that evaluation under ``missing_images="skip"`` would still count.
        gallery: images.
        best: the highest recall (or mAP) in percent that can be reached with what is there, a lost
            query counting as failed: the share of queries that have their reference, and in the
            gallery a correct image other than an excluded reference, averaged as the protocol does;
            None where the answers are not public.
    """

    name: str
    queries: Share
    gallery: Share
    best: float | None


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found in a data folder.

    Attributes:
        name: the data set's.
        directory: the folder of the annotations.
        layout: which layout was found; empty where the annotations cannot be read, and then only
            `findings` says more.
        image_directory: the folder of the images.
        counts: beside the published ones.
        images: those that anything refers to.
        needed: those that training and evaluation need.
        triplets: for training; for Fashion200k, whose pairs are drawn, images.
        items: that an epoch has; both caption orders of a triplet count.
        protocols: what is left of each evaluation.
        findings: problems, the worst first.
        seconds: that all of this took.
    """

    name: str
    directory: str
    layout: str = ""
    image_directory: str = ""
    counts: tuple[Count, ...] = ()
    images: Share = Share(0, 0)
    needed: Share = Share(0, 0)
    triplets: Share = Share(0, 0)
    items: Share = Share(0, 0)
    protocols: tuple[ProtocolShare, ...] = ()
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0

    def ready(self) -> bool:
        """Tell whether training (CIRCO: evaluation) would start."""
        return not any(f.severity == "error" for f in self.findings)

    def verdict(self) -> str:
        """Return in one line whether training would start, and why not."""
        work = "evaluation" if self.name == "circo" else "training"
        if self.ready():
            accepted = any(f.kind == "near_names_accepted" for f in self.findings)
            flags = [near_names_lib.FLAG] if accepted else []
            flags += [f.fix for f in self.findings if f.kind == "few_items"]
            return f"ready for {work}{' with ' if flags else ''}{' and '.join(flags)}"
        problems = [f.title for f in self.findings if f.severity == "error"]
        return f"{work} would fail: {'; '.join(problems)}"

    def rate(self) -> float:
        """Return how many image files a second were looked at."""
        return self.images.total / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON, with the verdict."""
        return {
            "ready": self.ready(),
            "verdict": self.verdict(),
            **dataclasses.asdict(self),
            "files_per_second": self.rate(),
        }


def examine(
    name: str,
    directory: str,
    image_directory: str | None = None,
    vocabulary: Vocabulary | None = None,
    near_names: str = "fail",
) -> Report:
    """Look at a data set: annotations, every image file, and what follows for training.

    Nothing is written, and garments are not rendered.

    Args:
        name: one of `readers.NAMES`.
        directory: the folder of the annotations.
        image_directory: the folder of the images; None: inside ``directory``.
        vocabulary: a model's words, to compare the captions with; None: the training captions'.
        near_names: as ``config.data.near_names``.

    Raises:
        ValueError: no such data set, or one that is prepared.
    """
    name = data_set_name(name)
    if prepared.is_prepared(directory):
        raise ValueError(
            f"{directory} holds a prepared data set; the doctor looks at raw ones, before they are "
            "prepared"
        )
    started = time.perf_counter()
    try:
        records = _read(name, directory, image_directory, near_names)
    except (ValueError, OSError) as error:
        return Report(name, directory, findings=(_reading_finding(error, name, directory),))
    reasons = check_images(records)
    usable = [image for i, image in records.images.items() if i not in reasons]
    annotations = list_annotations(records)
    readings = read_splits(records, annotations, vocabulary)
    counts = published.compare(records, directory)
    items = Share(len(records.train), _items_without(records, set(reasons)))
    findings = [
        *_training_findings(name, items.total),
        *image_findings(
            records,
            reasons,
            _folders(directory, records.image_directory),
            lambda folder: _read(name, directory, folder, near_names),
        ),
        *near_name_findings(records),
        *trait_findings(records, find_traits(records, [i.id for i in usable])),
        *published.count_findings(name, counts),
        *repeated_row_findings(records, annotations),
        *gallery_findings(records),
        *duplicate_findings(records, usable, annotations),
        *same_image_findings(annotations),
        *leak_findings(records),
        *caption_findings(records, annotations, readings),
        *word_findings(records, readings, vocabulary),
        *(_garments_findings(directory) if name == "garments" else ()),
    ]
    return Report(
        name=name,
        directory=directory,
        layout=records.layout,
        image_directory=records.image_directory,
        counts=counts,
        images=_share(records.images, reasons),
        needed=_share(records.image_ids(), reasons),
        triplets=_usable_triplets(annotations, reasons),
        items=items,
        protocols=tuple(
            _protocol_share(evaluation, set(reasons))
            for evaluations in (*records.evaluations.values(), records.unlabelled.values())
            for evaluation in evaluations
        ),
        findings=tuple(sorted(findings, key=lambda f: _SEVERITIES.index(f.severity))),
        seconds=time.perf_counter() - started,
    )


def _read(
    name: str, directory: str, image_directory: str | None, near_names: str = "fail"
) -> Records:
    if name == "garments" and not image_directory:
        # As training asks for them, which can set a few fields only.
        return garments_reader.read(directory, **_garments_fields(directory))
    return read_folder(name, directory, image_directory, near_names)


def _garments_fields(directory: str) -> dict[str, int | float]:
    """Return the fields of ``config.data.garments`` that the garments in a folder have."""
    settings = garments_settings(directory)
    return {key: settings[key] for key in ("seed", "image_size", "train_triplets")}


def _reading_finding(error: Exception, name: str, directory: str) -> Finding:
    """Return what is wrong with annotations that cannot be read, and what to do about it."""
    if isinstance(error, OSError) and error.filename:
        title = f"{error.filename}: {error.strerror}"
    else:
        title = spelled(str(error), SPELLING)
    if not isinstance(error, FileNotFoundError):
        fix = "mend that place"
        if name not in ("folder", "garments"):
            fix += ", or take the file from its publisher again"
    elif name == "garments":
        fix = (
            "training renders them into a folder that is empty or not there: python main.py "
            f"--config=configs/garments.py --config.data.directory={directory}"
        )
    elif others := _other_layouts(name, directory):
        fix = f"what lies there looks like {' or '.join(others)}"
    else:
        fix = "give the folder of the annotations; if it is this one, restore what is missing there"
    return Finding("annotations", "error", title, 1, (), fix)


def _other_layouts(name: str, directory: str) -> dict[str, None]:
    """Return the commands for the layouts found at or below a folder, but not the one tried."""
    found = {}
    if storage.is_folder(directory):
        for path in storage.walk(directory):
            for other, mark in _MARKS.items():
                match = re.fullmatch(rf"(?:(.*)/)?(?:{mark})", path)
                if match and (match[1] or other != name):
                    place = storage.join(directory, match[1]) if match[1] else directory
                    found[f"cmap doctor {other} {place}"] = None
    return found


def _folders(directory: str, image_directory: str) -> tuple[str, ...]:
    """Return where lost images may lie; a folder inside another is walked with it."""
    inside = f"{image_directory}/".startswith(f"{directory.rstrip('/')}/")
    return (directory,) if inside else (directory, image_directory)


def _share(ids: Collection[str], reasons: Collection[str]) -> Share:
    return Share(len(ids), sum(i not in reasons for i in ids))


def _items_without(records: Records, missing: Set[str]) -> int:
    try:
        return len(records.train.without(missing))
    except DataError:  # no two of the captions that are left differ in one word
        return 0


def _usable_triplets(annotations: Sequence[Annotation], reasons: Collection[str]) -> Share:
    train = [a for a in annotations if a.split == "train"]
    usable = sum(not any(i in reasons for i in (a.reference, *a.targets)) for a in train)
    return Share(len(train), usable)


def _protocol_share(evaluation: Evaluation, missing: Set[str]) -> ProtocolShare:
    left = evaluation.without(missing)
    answers_public = any(q.targets for q in evaluation.queries)
    return ProtocolShare(
        evaluation.protocol.name,
        Share(len(evaluation.queries), len(left.queries)),
        Share(sum(map(len, evaluation.galleries.values())), sum(map(len, left.galleries.values()))),
        _best(evaluation, left) if answers_public else None,
    )


def _best(evaluation: Evaluation, left: Evaluation) -> float:
    """Return `ProtocolShare.best` of an evaluation, given what is left of it."""
    protocol = evaluation.protocol
    galleries = {category: set(ids) for category, ids in left.galleries.items()}
    groups: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for queries, at in ((evaluation.queries, 0), (left.queries, 1)):
        for q in queries:
            right = galleries[q.category].intersection(q.targets)
            if protocol.reference == "excluded":
                right.discard(q.reference)
            group = q.category if protocol.averaging == "categories" else ""
            groups[group][at] += 1 if at == 0 else bool(right)
    shares = [100 * reachable / total for total, reachable in groups.values()]
    return sum(shares) / len(shares)


def _training_findings(name: str, items: int) -> Iterator[Finding]:
    if items >= BATCH_SIZE or name == "circo":
        return
    if items:
        title = f"{number(items, 'training item')}, fewer than the configs' batch of {BATCH_SIZE}"
        fix = f"--config.train.batch_size={items} or less"
        yield Finding("few_items", "warning", title, items, (), fix)
        return
    yield Finding(
        "nothing_to_train_on",
        "error",
        "nothing to train on",
        0,
        (),
        f"put {training_files(name) or 'training annotations'} there, or only evaluate a model: "
        "python main.py --mode=evaluate --workdir=...",
    )


def _garments_findings(directory: str) -> Iterator[Finding]:
    fields = _garments_fields(directory).items()
    flags = " ".join(f"--config.data.garments.{key}={value}" for key, value in fields)
    title = "training must name the settings that these garments were rendered with"
    yield Finding("garments_settings", "note", title, 1, (), flags)
