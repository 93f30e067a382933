"""What a number means: an evaluation protocol is an object, and every number carries its name.

Recalls from different galleries or caption policies must never be compared (SPEC 6); a table, a
file or a TensorBoard tag therefore always names its protocol, and `cmap compare` refuses to put two
of them side by side.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules behind a number (SPEC 6).

    Attributes:
        name: such as "fashioniq/original"; the key of every result.
        gallery: what is searched, for people.
        captions: how an annotation's captions become queries:
            "both orders": two captions joined in both orders, each order a query;
            "joined": two captions joined in the order given, one query;
            "averaged": both orders, their scores averaged before ranking, one query;
            "one": the annotation has one text.
        correct: which images count as right, for people.
        metrics: what is reported, in this order: "R@K" (share of queries with a correct image among
            the first K), "R_subset@K" (the same among the other images of the query's set), "mAP@K"
            (mean average precision, divided by min(correct images, K)).
        headline: the metrics whose mean is the one number that chooses a checkpoint.
        headline_name: what that number is called.
        averaging: "categories": the mean over categories of each one's metrics, each with a gallery
            of its own; "pooled": one gallery, all queries alike.
        reference: "excluded": the score of the query's own reference image becomes -inf; or "kept".
        version: raised when a rule changes under the same name; results of two versions are never
            compared. Version 2 counts ties in nobody's favour (`cmap_jax.retrieval.placement`);
            version 1 ranked a correct image before all wrong ones of the same score.
    """

    name: str
    gallery: str
    captions: Literal["both orders", "joined", "averaged", "one"]
    correct: str
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    headline_name: str = "mR"
    averaging: Literal["categories", "pooled"] = "pooled"
    reference: Literal["excluded", "kept"] = "excluded"
    version: int = 2

    def __post_init__(self):
        """Refuse a metric that nobody computes."""
        for metric in (*self.metrics, *self.headline):
            split_metric(metric)
        if not self.headline or not set(self.headline) <= set(self.metrics):
            raise ValueError(f"{self.name}: the headline {self.headline} is not among the metrics")

    def cutoffs(self, kind: str) -> tuple[int, ...]:
        """Return the K of the metrics of a kind, "R", "R_subset" or "mAP"."""
        split = map(split_metric, self.metrics)
        return tuple(k for name, k in split if name == kind)

    def to_dict(self) -> dict:
        """Return the fields, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Protocol":
        """Build a protocol from `to_dict`'s result."""
        lists = {name: tuple(fields[name]) for name in ("metrics", "headline")}
        return cls(**{**fields, **lists})


def split_metric(metric: str) -> tuple[str, int]:
    """Return kind and K of a metric's name: "R_subset@3" is ("R_subset", 3).

    Raises:
        ValueError: not such a name.
    """
    kind, _, cutoff = metric.partition("@")
    if kind not in ("R", "R_subset", "mAP") or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(f"{metric!r} is no metric: R@K, R_subset@K or mAP@K")
    return kind, int(cutoff)


def _recalls(*cutoffs: int) -> dict[str, tuple[str, ...]]:
    """Return the fields of a protocol that reports recalls and their mean."""
    names = tuple(f"R@{k}" for k in cutoffs)
    return {"metrics": names, "headline": names}


_ONE_TARGET = "the annotation's target"
_FASHION_IQ = {"correct": _ONE_TARGET, "averaging": "categories", **_recalls(10, 50)}
_ORIGINAL = "all images of the category's split.<category>.val.json"
_NAMED = "the category's val candidates and targets"
_SERVER = "known to the data set's server alone"
_FOLDER = {"captions": "both orders", "correct": "the row's targets", **_recalls(1, 10, 50)}

_CIRR = Protocol(
    "cirr/val",
    "all images of split.rc2.val.json",
    "one",
    "target_hard",
    metrics=("R@1", "R@5", "R@10", "R@50", "R_subset@1", "R_subset@2", "R_subset@3"),
    headline=("R@5", "R_subset@1"),
    headline_name="mean(R@5, R_subset@1)",
)
_CIRCO = Protocol(
    "circo/val",
    "all images of COCO unlabeled2017",
    "one",
    "the annotation's ground truths",
    metrics=("mAP@5", "mAP@10", "mAP@25", "mAP@50"),
    headline=("mAP@5",),
    headline_name="mAP@5",
    # The server judges the list as it is, and its example submissions hold some references.
    reference="kept",
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("fashioniq/original", _ORIGINAL, "both orders", **_FASHION_IQ),
        Protocol(
            "fashioniq/val",
            "the category's val candidates and targets",
            "both orders",
            **_FASHION_IQ,
        ),
        Protocol("fashioniq/original-joined", _ORIGINAL, "joined", **_FASHION_IQ),
        Protocol("fashioniq/original-averaged", _ORIGINAL, "averaged", **_FASHION_IQ),
        Protocol("shoes", "all images of the eval list", "one", _ONE_TARGET, **_recalls(1, 10, 50)),
        Protocol(
            "fashion200k",
            "all test images",
            "one",
            "every gallery image with the target's caption",
            **_recalls(1, 10, 50),
        ),
        _CIRR,
        dataclasses.replace(
            _CIRR,
            name="cirr/test1",
            gallery="all images of split.rc2.test1.json",
            correct=_SERVER,
        ),
        _CIRCO,
        dataclasses.replace(_CIRCO, name="circo/test", correct=_SERVER),
        *(
            Protocol(
                f"garments/{name}",
                f"the {gallery}, one image each",
                "both orders",
                _ONE_TARGET,
                **_recalls(1, 10, 50),
            )
            for name, gallery in (
                ("val", "val combinations"),
                ("test", "test combinations"),
                ("all", "combinations of train, val and test"),
            )
        ),
        Protocol("folder/val", "the images that the val file names", **_FOLDER),
        Protocol("folder/val-gallery", "the images that gallery.txt lists", **_FOLDER),
        Protocol("folder/test", "the images that the test file names", **_FOLDER),
        Protocol("folder/test-gallery", "the images that gallery.txt lists", **_FOLDER),
    )
}
