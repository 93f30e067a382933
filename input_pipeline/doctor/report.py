"""The doctor's report: what there is in a data folder, what is wrong with it, and the verdict."""

import dataclasses
from typing import Any

from input_pipeline.doctor.findings import Finding
from input_pipeline.images import near_names
from input_pipeline.readers.data_set import Count
from input_pipeline.registry import find_data_set


@dataclasses.dataclass(frozen=True)
class Share:
    """A number of things, and how many of them can be used: their images are there and readable."""

    total: int
    usable: int


@dataclasses.dataclass(frozen=True)
class ProtocolShare:
    """The part of an evaluation that is left without the unusable images.

    Attributes:
        name: name of the protocol.
        queries: all queries, and those that ``missing_images="skip"`` would leave.
        gallery: all images that are searched, and the usable ones.
        best: the highest recall (or mAP) in percent that can be reached with what is there, a lost
            query counting as failed: the share of queries that have their reference, and in the
            gallery a correct image other than an excluded reference, averaged as the protocol does;
            None where the answers are not public.
    """

    name: str
    queries: Share
    gallery: Share
    best: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """The state of a data folder.

    Attributes:
        name: name of the data set in `registry.DATA_SETS`.
        directory: the folder of the annotations.
        layout: description of the layout that was recognized; empty where the annotations cannot be
            read, and then only `findings` says more.
        image_directory: the folder of the images.
        counts: numbers of the folder beside the published ones.
        images: all images that anything refers to.
        needed: the images that training and evaluation need.
        triplets: training triplets, or images where the triplets are drawn.
        items: training items of an epoch; both caption orders of a triplet count.
        protocols: the usable part of each evaluation.
        findings: problems, the worst first.
        seconds: time that the examination took.
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
        """Tell whether training (or evaluation, where nothing else is possible) would start."""
        return not any(f.severity == "error" for f in self.findings)

    def verdict(self) -> str:
        """Return in one line whether training would start, and why not."""
        work = "evaluation" if find_data_set(self.name).evaluation_only else "training"
        if self.ready():
            accepted = any(f.kind == "near_names_accepted" for f in self.findings)
            flags = [near_names.FLAG] if accepted else []
            flags += [f.fix for f in self.findings if f.kind == "few_items"]
            return f"ready for {work}{' with ' if flags else ''}{' and '.join(flags)}"
        problems = [f.title for f in self.findings if f.severity == "error"]
        return f"{work} would fail: {'; '.join(problems)}"

    def rate(self) -> float:
        """Return the number of image files examined per second."""
        return self.images.total / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON, with the verdict."""
        return {
            "ready": self.ready(),
            "verdict": self.verdict(),
            **dataclasses.asdict(self),
            "files_per_second": self.rate(),
        }
