"""Published numbers (docs/method.md, section 7), and when a result may stand beside them.

Numbers of different galleries or queries must never be compared. A number is therefore found by its
protocol, and shown only where gallery and queries have the published sizes.
"""

import dataclasses
from collections.abc import Mapping

from cmap_jax.evaluation.results import ProtocolResult
from cmap_jax.evaluation.results_file import StoredResults
from cmap_jax.protocols import PROTOCOLS


@dataclasses.dataclass(frozen=True)
class Published:
    """Numbers that were published under one protocol.

    Attributes:
        gallery_images: size of the galleries of all categories together.
        queries: number of queries, both caption orders counted where both are asked.
        methods: percent by method and number, as `ProtocolResult.numbers` names them.
        vision_language: the same for methods that build on vision-language models, for scale.
    """

    gallery_images: int
    queries: int
    methods: Mapping[str, Mapping[str, float]]
    vision_language: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


_CMAP = "CMAP, as published"
PUBLISHED = {
    "fashioniq/original": Published(
        gallery_images=3817 + 6346 + 5373,
        queries=2 * (2017 + 2038 + 1961),
        methods={
            _CMAP: {
                "R@10": 30.24,
                "R@50": 55.00,
                "mR": 42.68,
                "dress/R@10": 31.41,
                "dress/R@50": 57.46,
                "shirt/R@10": 25.52,
                "shirt/R@50": 48.63,
                "toptee/R@10": 33.96,
                "toptee/R@50": 59.10,
            },
            "ARTEMIS": {"mR": 38.17},
            "DCNet": {"mR": 40.83},
            "CoSMo": {"mR": 31.26},
            "VAL": {"mR": 35.38},
            "TIRG": {"mR": 27.40},
        },
        vision_language={
            "CLIP4Cir": {"mR": 55.36},
            "SPRC": {"mR": 64.85},
            "DQU-CIR": {"mR": 65.13},
        },
    ),
    "fashioniq/val": Published(
        gallery_images=2628 + 3089 + 2902,
        queries=2 * (2017 + 2038 + 1961),
        methods={_CMAP: {"mR": 51.03}},
        vision_language={"DQU-CIR": {"mR": 71.77}},
    ),
    "shoes": Published(
        gallery_images=4658,
        queries=1761,
        methods={"CMAP, quoted second-hand": {"R@1": 20.73, "R@10": 55.96, "R@50": 80.98}},
    ),
}


def why_not_comparable(name: str, stored: StoredResults) -> str | None:
    """Return why a result may not stand beside the published numbers; None: it may.

    Args:
        name: key of a protocol in the results; must be one of `PUBLISHED`.
        stored: the content of a file of results.
    """
    published, result = PUBLISHED[name], stored.result.protocols[name]
    facts, numbers = stored.facts.data_set, result.numbers
    if facts.images_skipped:
        return f"{facts.images_skipped:,} unusable images were left out here"
    if facts.categories_missing:
        return f"there is no {', '.join(facts.categories_missing)} here"
    if numbers["gallery_images"] != published.gallery_images:
        return (
            f"the gallery has {numbers['gallery_images']:,} images here and "
            f"{published.gallery_images:,} there"
        )
    queries = _asked(result)
    if queries != published.queries:
        return f"{queries:,} queries were asked here and {published.queries:,} there"
    if result.protocol != PROTOCOLS[name]:
        return (
            f"this result was measured under version {result.protocol.version} of the rules; "
            "evaluate again"
        )
    return None


def _asked(result: ProtocolResult) -> int:
    """Return the number of queries, those without an answer included."""
    return result.numbers["queries"] + result.numbers["skipped"]
