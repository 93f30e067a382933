"""Facts of a data set that models and results are stamped with, and their form in JSON.

    facts = DataFacts.from_dict({**records.facts, "skipped_images": ["a.jpg"]})
    facts.skipped_images                    # ("a.jpg",)
    facts.to_dict()["images_skipped"]       # 1

The keys are those of ``model.json`` and ``evaluation.json`` in a workdir. No other module reads
them by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

# Parts of a data set that have digests. Those of an evaluation follow its protocol's name and "/".
TRAIN, IMAGES, QUERIES, GALLERY = "train", "images", "queries", "gallery"

_DIFFERS = {
    TRAIN: "the training triplets are others, or in another order",
    IMAGES: "the images' bytes differ",
    QUERIES: "the queries of {} are others, or in another order",
    GALLERY: "the gallery of {} is another",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts of a data set as a training or an evaluation has read it.

    Attributes:
        categories_missing: categories whose annotation files are not there. Means over the
            remaining ones cannot be compared with published means.
        digests: digest by part, such as "train", "images" or "cirr/val/queries"; empty for data
            that earlier versions have read.
        features: checksum of the precomputed features that were read in place of images; None:
            the images themselves.
        oracles: by protocol and oracle, the recalls in percent that a guess from a part of each
            query reaches; None where the data set does not know them, or where images are left
            out, since they belong to the whole gallery.
        other: further facts by name, JSON values, that no code depends on.
        prepared: version, encoding and size of a prepared data set; None for original images.
        skipped_images: ids of the images that were unusable and left out, sorted.
        training_items: items of an epoch; None where only evaluation was asked for.
    """

    categories_missing: tuple[str, ...] = ()
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    features: str | None = None
    oracles: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
    other: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prepared: Mapping[str, Any] | None = None
    skipped_images: tuple[str, ...] = ()
    training_items: int | None = None

    def __post_init__(self) -> None:
        if self.skipped_images:
            object.__setattr__(self, "oracles", None)

    @property
    def images_skipped(self) -> int:
        """Number of images that were unusable and left out."""
        return len(self.skipped_images)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON; those that do not apply are absent."""
        fields: dict[str, Any] = {}
        if self.categories_missing:
            fields["categories_missing"] = list(self.categories_missing)
        if self.digests:
            fields["digests"] = dict(self.digests)
        if self.features is not None:
            fields["features"] = self.features
        if self.oracles is not None:
            fields["oracles"] = self.oracles
        fields |= self.other
        if self.prepared is not None:
            fields["prepared"] = self.prepared
        fields["skipped_images"] = list(self.skipped_images)
        if self.training_items is not None:
            fields["training_items"] = self.training_items
        fields["images_skipped"] = self.images_skipped
        return fields

    def differences(self, now: "DataFacts") -> list[str]:
        """Return in words the ways in which data differ from these; none if they are the same.

        Parts without a digest are not compared: earlier versions took none, and not all prepared
        data have one of the images.

        Args:
            now: facts of the data at hand.
        """
        old, new = (_as_json(facts) for facts in (self, now))
        digests, others = old.pop("digests", {}), new.pop("digests", {})
        fields = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return [
            *(f"{k} was {old.get(k)!s:.200} and is {new.get(k)!s:.200}" for k in fields),
            *(
                _in_words(part, part in others)
                for part, digest in digests.items()
                if others.get(part) != digest and (part in others or part != IMAGES)
            ),
        ]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "DataFacts":
        """Build facts from the result of `to_dict`, or from what a reader of a data set states."""
        other = dict(fields)
        other.pop("images_skipped", None)  # the length of "skipped_images"
        return cls(
            categories_missing=tuple(other.pop("categories_missing", ())),
            digests=other.pop("digests", {}),
            features=other.pop("features", None),
            oracles=other.pop("oracles", None),
            prepared=other.pop("prepared", None),
            skipped_images=tuple(other.pop("skipped_images", ())),
            training_items=other.pop("training_items", None),
            other=other,
        )


def _as_json(facts: DataFacts) -> dict[str, Any]:
    """Return facts as a file gives them back, with lists in place of tuples."""
    return json.loads(json.dumps(facts.to_dict()))


def _in_words(part: str, is_there: bool) -> str:
    """Return how a part of a data set differs from the one whose digest was taken."""
    protocol, _, kind = part.rpartition("/")
    if not is_there:
        return f"{protocol or part} is no longer among the data"
    return _DIFFERS[kind].format(protocol)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnreadTexts:
    """The part of some texts that a model cannot read.

    Attributes:
        unknown_words_percent: percentage of the words that have no id of their own.
        most_frequent_unknown: number of occurrences of some of these words, largest first.
        wordless_captions_percent: percentage of the captions that lose all words in cleaning.
    """

    unknown_words_percent: float
    most_frequent_unknown: Mapping[str, int]
    wordless_captions_percent: float
