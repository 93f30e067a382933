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
from collections.abc import Callable, Iterator, Set
from typing import Any

from cmap_jax.processing.tokenizer import Vocabulary
from input_pipeline import published, storage
from input_pipeline.annotations import check_keys
from input_pipeline.findings import (
    Annotation,
    Finding,
    caption_findings,
    leak_findings,
    list_annotations,
    number,
    same_image_findings,
    word_findings,
)
from input_pipeline.garments import STAMP
from input_pipeline.garments import reader as garments_reader
from input_pipeline.image_check import check_images
from input_pipeline.image_findings import duplicate_findings, image_findings
from input_pipeline.published import Count
from input_pipeline.readers import READERS
from input_pipeline.records import DataError, Evaluation, Records

NAMES = (*READERS, "garments")
BATCH_SIZE = 128  # of the configs

_SEVERITIES = ("error", "warning", "note")
# The file by which each layout is known.
_MARKS = {
    "cirr": r"captions/cap\.rc2\.val\.json",
    "fashion_iq": r"captions/cap\.(?!rc2)[^./]+\.train\.json",
    "shoes": r"relative_captions_shoes\.json|triplet\.train\.json",
    "fashion200k": r"labels/[^/]+_train_detect_all\.txt",
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
        seconds: that looking at the files took.
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
            return f"ready for {work}"
        problems = [f.title for f in self.findings if f.severity == "error"]
        return f"{work} would fail: {'; '.join(problems)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON, with the verdict."""
        return {"ready": self.ready(), "verdict": self.verdict(), **dataclasses.asdict(self)}


def examine(
    name: str,
    directory: str,
    image_directory: str | None = None,
    vocabulary: Vocabulary | None = None,
) -> Report:
    """Look at a data set: annotations, every image file, and what follows for training.

    Nothing is written, and garments are not rendered.

    Args:
        name: one of `NAMES`.
        directory: the folder of the annotations.
        image_directory: the folder of the images; None: inside ``directory``.
        vocabulary: a model's words, to compare the captions with; None: the training captions'.

    Raises:
        ValueError: no such data set.
    """
    if name not in NAMES:
        raise ValueError(f"{name!r} is no data set: {', '.join(NAMES)}")
    try:
        records = _read(name, directory, image_directory)
    except (ValueError, OSError) as error:
        finding = Finding(
            "annotations", "error", str(error), 1, (), _fix_of(error, directory)
        )
        return Report(name, directory, findings=(finding,))
    annotations = list_annotations(records)
    started = time.perf_counter()
    reasons = check_images(records.images.values(), records.image_directory)
    usable = [image for i, image in records.images.items() if i not in reasons]
    duplicates = list(duplicate_findings(records, usable, annotations))
    seconds = time.perf_counter() - started
    counts = published.compare(records, directory)
    findings = [
        *_training_findings(records, name, directory),
        *image_findings(
            records,
            reasons,
            _folders(directory, records.image_directory),
            lambda folder: _read(name, directory, folder),
        ),
        *duplicates,
        *_count_findings(name, counts),
        *same_image_findings(annotations),
        *leak_findings(records),
        *caption_findings(annotations),
        *word_findings(records, annotations, vocabulary),
    ]
    ...
