"""What a number means: an evaluation protocol is an object, and every number carries its name.

Recalls from different galleries or caption policies must never be compared (SPEC 6); a table, a
file or a TensorBoard tag therefore always names its protocol.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The rules behind a number (SPEC 6).

    Attributes:
        name: such as "fashioniq/original"; the key of every result.
        gallery: what is searched, for people.
        captions: how an annotation's captions become queries, for people.
        correct: which images count as right, for people.
        recall_at: the K of each recall R@K, in images.
        averaging: "categories": the mean over categories of each one's recall, each with a gallery
            of its own; "pooled": one gallery, all queries alike.
        reference: "excluded": the score of the query's own reference image becomes -inf; or "kept".
    """

    name: str
    gallery: str
    captions: str
    correct: str
    recall_at: tuple[int, ...]
    averaging: Literal["categories", "pooled"]
    reference: Literal["excluded", "kept"] = "excluded"

    def to_dict(self) -> dict:
        """Return the fields, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict) -> "Protocol":
        """Build a protocol from `to_dict`'s result."""
        return cls(**{**fields, "recall_at": tuple(fields["recall_at"])})


_BOTH_ORDERS = "an annotation's two captions joined by <and>; both orders are queries"
_ONE_TARGET = "the annotation's target"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "fashioniq/original",
            "all images of the category's split.<category>.val.json",
            _BOTH_ORDERS,
            _ONE_TARGET,
            (10, 50),
            "categories",
        ),
        Protocol(
            "fashioniq/val",
            "the category's val candidates and targets",
            _BOTH_ORDERS,
            _ONE_TARGET,
            (10, 50),
            "categories",
        ),
        Protocol(
            "shoes",
            "all images of the eval list",
            "an annotation's one caption",
            _ONE_TARGET,
            (1, 10, 50),
            "pooled",
        ),
        Protocol(
            "fashion200k",
            "all test images",
            "one text a query: replace A with B",
            "every gallery image with the target's caption",
            (1, 10, 50),
            "pooled",
        ),
        Protocol(
            "garments/val",
            "the val combinations, one image each",
            _BOTH_ORDERS,
            _ONE_TARGET,
            (1, 10, 50),
            "pooled",
        ),
        Protocol(
            "garments/test",
            "the test combinations, one image each",
            _BOTH_ORDERS,
            _ONE_TARGET,
            (1, 10, 50),
            "pooled",
        ),
        Protocol(
            "garments/all",
            "all combinations of train, val and test, one image each",
            _BOTH_ORDERS,
            _ONE_TARGET,
            (1, 10, 50),
            "pooled",
        ),
    )
}
