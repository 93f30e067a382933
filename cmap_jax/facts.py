"""Facts of a data set that models and results are stamped with, and their form in JSON.

    facts = DataFacts.from_dict({**records.facts, "skipped_images": ["a.jpg"]})
    facts.skipped_images                    # ("a.jpg",)
    facts.to_dict()["images_skipped"]       # 1

The keys are those of ``model.json`` and ``evaluation.json`` in a workdir. No other module reads
them by name.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Facts of a data set as a training or an evaluation has read it.

    Attributes:
        categories_missing: categories whose annotation files are not there. Means over the
            remaining ones cannot be compared with published means.
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

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "DataFacts":
        """Build facts from the result of `to_dict`, or from what a reader of a data set states."""
        other = dict(fields)
        other.pop("images_skipped", None)  # the length of "skipped_images"
        return cls(
            categories_missing=tuple(other.pop("categories_missing", ())),
            features=other.pop("features", None),
            oracles=other.pop("oracles", None),
            prepared=other.pop("prepared", None),
            skipped_images=tuple(other.pop("skipped_images", ())),
            training_items=other.pop("training_items", None),
            other=other,
        )


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
