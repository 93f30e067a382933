"""Evaluation protocols: the rules behind a number, whose name every number carries.

Recalls from different galleries or caption policies must never be compared (docs/method.md,
section 6); a table, a file or a TensorBoard tag therefore always names its protocol, and `cmap
compare` refuses to put two of them side by side. Where the answers are known to a server alone,
`Submission` says in which form the server takes rankings.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

_KINDS = ("R", "R_subset", "mAP", "mAP_multi", "wrong", "spread")  # the part before "@K"
LOWER_IS_BETTER = ("wrong", "spread")  # kinds of metrics that measure a fault


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules behind a number (docs/method.md, section 6).

    Attributes:
        name: key of every result, such as "fashioniq/original".
        gallery: the images that are searched, in words.
        captions: how an annotation's captions become queries:
            "both orders": two captions joined in both orders, each order a query;
            "joined": two captions joined in the order given, one query;
            "averaged": both orders, their scores averaged before ranking, one query;
            "one": the annotation has one text;
            "paraphrases": the annotation has several texts that mean the same, each a query; the
            two captions of a text are joined in the order given;
            "concept": that text and the concept that reference and targets share are one sentence,
            see `with_concept`.
        correct: the images that count as right, in words.
        metrics: the numbers reported, in this order: "R@K" (share of queries with a correct image
            among the first K), "R_subset@K" (the same among the other images of the query's set),
            "mAP@K" (mean average precision, divided by min(correct images, K)), "mAP_multi@K" (the
            same over the queries with several references alone), "wrong@K" (share of explicit wrong
            images among the first K, over the queries that have some) and "spread@K" (largest minus
            smallest average precision of an annotation's paraphrases, over the annotations with
            several). The last two are better the lower they are. A number over no query is absent.
        headline: the metrics whose mean is the one number that chooses a checkpoint.
        headline_name: name of that mean in tables and files.
        averaging: "categories": the mean over categories of each one's metrics, each with a gallery
            of its own; "pooled": one gallery, all queries alike.
        reference: "excluded": the score of the query's own references becomes -inf; or "kept".
        version: number that grows when a rule changes under the same name; results of two versions
            are never compared. Version 2 counts ties in nobody's favour
            (`cmap_jax.retrieval.placement`); version 1 ranked a correct image before all wrong ones
            of the same score.
    """

    name: str
    gallery: str
    captions: Literal["both orders", "joined", "averaged", "one", "paraphrases", "concept"]
    correct: str
    metrics: tuple[str, ...]
    headline: tuple[str, ...]
    headline_name: str = "mR"
    averaging: Literal["categories", "pooled"] = "pooled"
    reference: Literal["excluded", "kept"] = "excluded"
    version: int = 2

    def __post_init__(self):
        """Refuse a metric that is not computed anywhere."""
        for metric in (*self.metrics, *self.headline):
            kind, k = split_metric(metric)
            if kind in ("mAP_multi", "spread") and f"mAP@{k}" not in self.metrics:
                raise ValueError(f"{self.name}: {metric} is computed from mAP@{k}, which is absent")
        if not self.headline or not set(self.headline) <= set(self.metrics):
            raise ValueError(f"{self.name}: the headline {self.headline} is not among the metrics")

    def cutoffs(self, kind: str) -> tuple[int, ...]:
        """Return each K of the metrics of one kind, such as "R_subset" or "mAP"."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerFile:
    """A JSON file that a server takes: an object with a list of images for each query.

    Attributes:
        name: file name to write, such as "recall.json".
        header: keys that stand beside the queries, with their values; they tell a submission's
            files apart.
        ranking: "top", images of the gallery, or "subset_top", images of the query's own set.
        count: images a query, the best first; fewer where there are not so many to choose from.
        candidates: the images that may be listed, in words.
    """

    name: str
    header: Mapping[str, str]
    ranking: Literal["top", "subset_top"]
    count: int
    candidates: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """The answers that a data set's server takes for a split without public answers.

    See docs/method.md, section 5.

    Whether a query's list may hold its own reference is a matter of the protocol.

    Attributes:
        split: name of that split.
        server: address to upload at.
        query: noun for a query in messages, such as "pair".
        image_type: type of an image in the lists: str, an id, or int, an id's number.
        max_bytes: size of the largest file that is taken.
        files: all files of a submission.
    """

    split: str
    server: str
    query: str
    image_type: type[str] | type[int]
    max_bytes: int
    files: tuple[AnswerFile, ...]


def with_concept(name: str) -> str:
    """Return the name of the protocol that differs from a protocol in the policy "concept" alone.

    Args:
        name: key of `PROTOCOLS`, such as "circo/val".
    """
    return f"{name}-concept"


def concept_caption(concept: str, caption: str) -> str:
    """Return the text of a query under the caption policy "concept".

    MagicLens was evaluated on such texts (docs/method.md, section 10, MagicLens).
    """
    return f"find {concept} but {caption}"


def split_metric(metric: str) -> tuple[str, int]:
    """Return kind and K of a metric's name: "R_subset@3" is ("R_subset", 3).

    Raises:
        ValueError: the name has another form.
    """
    kind, _, cutoff = metric.partition("@")
    if kind not in _KINDS or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(f"{metric!r} is no metric: {', '.join(f'{kind}@K' for kind in _KINDS)}")
    return kind, int(cutoff)


def _recalls(*cutoffs: int) -> dict[str, Any]:
    """Return the fields of a protocol that reports recalls and their mean."""
    names = tuple(f"R@{k}" for k in cutoffs)
    return {"metrics": names, "headline": names}


_ONE_TARGET = "the annotation's target"
_SERVER = "known to the data set's server alone"
_ORIGINAL = "all images of the category's split.<category>.val.json"
_FASHION_IQ = {"correct": _ONE_TARGET, "averaging": "categories", **_recalls(10, 50)}
_GARMENTS = {"captions": "both orders", "correct": _ONE_TARGET, **_recalls(1, 10, 50)}
_FOLDER = {"captions": "both orders", "correct": "the row's targets", **_recalls(1, 10, 50)}
_JUDGED = {
    "captions": "paraphrases",
    "correct": _FOLDER["correct"],
    "metrics": ("mAP@10", "mAP_multi@10", "wrong@10", "spread@10"),
    "headline": ("mAP@10",),
    "headline_name": "mAP@10",
}
_LISTED = "the images that gallery.txt lists"

_CIRR = Protocol(
    name="cirr/val",
    gallery="all images of split.rc2.val.json",
    captions="one",
    correct="target_hard",
    metrics=("R@1", "R@5", "R@10", "R@50", "R_subset@1", "R_subset@2", "R_subset@3"),
    headline=("R@5", "R_subset@1"),
    headline_name="mean(R@5, R_subset@1)",
)
_CIRCO = Protocol(
    name="circo/val",
    gallery="all images of COCO unlabeled2017",
    captions="one",
    correct="the annotation's ground truths",
    metrics=("mAP@5", "mAP@10", "mAP@25", "mAP@50"),
    headline=("mAP@5",),
    headline_name="mAP@5",
    # The server judges the list as it is, and its example submissions hold some references.
    reference="kept",
)
_CIRCO_TEST = dataclasses.replace(_CIRCO, name="circo/test", correct=_SERVER)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="fashioniq/original",
            gallery=_ORIGINAL,
            captions="both orders",
            **_FASHION_IQ,
        ),
        Protocol(
            name="fashioniq/val",
            gallery="the category's val candidates and targets",
            captions="both orders",
            **_FASHION_IQ,
        ),
        Protocol(
            name="fashioniq/original-joined",
            gallery=_ORIGINAL,
            captions="joined",
            **_FASHION_IQ,
        ),
        Protocol(
            name="fashioniq/original-averaged",
            gallery=_ORIGINAL,
            captions="averaged",
            **_FASHION_IQ,
        ),
        Protocol(
            name="shoes",
            gallery="all images of the eval list",
            captions="one",
            correct=_ONE_TARGET,
            **_recalls(1, 10, 50),
        ),
        Protocol(
            name="fashion200k",
            gallery="all test images",
            captions="one",
            correct="every gallery image with the target's caption",
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
        _CIRCO_TEST,
        *(
            dataclasses.replace(plain, name=with_concept(plain.name), captions="concept")
            for plain in (_CIRCO, _CIRCO_TEST)
        ),
        Protocol(name="garments/val", gallery="the val combinations, one image each", **_GARMENTS),
        Protocol(
            name="garments/test", gallery="the test combinations, one image each", **_GARMENTS
        ),
        Protocol(
            name="garments/all",
            gallery="the combinations of train, val and test, one image each",
            **_GARMENTS,
        ),
        *(
            Protocol(name=f"folder/{split}{form}{suffix}", gallery=gallery, **rules)
            for split in ("val", "test")
            for form, rules in (("", _FOLDER), ("-judged", _JUDGED))
            for suffix, gallery in (
                ("", f"the images that the {split} file names"),
                ("-gallery", _LISTED),
            )
        ),
    )
}
