"""Plain records: the form into which readers bring a data set, and which all other code uses."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from typing import Any, ClassVar
from typing import Protocol as Interface

from cmap_jax.processing.images import RELEASED
from cmap_jax.protocols import PROTOCOLS, Protocol, concept_caption, with_concept


class DataError(ValueError):
    """The data on disk are wrong; the message names the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image of the data set: its id and the path of its file."""

    id: str
    path: str


@dataclasses.dataclass(frozen=True)
class Triplet:
    """A training item: ids of reference and target, and the captions, in order, between them."""

    reference: str
    target: str
    captions: tuple[str, ...]
    category: str = ""


@dataclasses.dataclass(frozen=True)
class Query:
    """An evaluation query; several targets may be right.

    Attributes:
        id: name of the query, unique in its evaluation.
        reference: image id.
        captions: one or two captions, in order.
        targets: image ids; those outside the gallery are ignored. Empty where the answers are not
            public.
        category: key of the gallery that is searched.
        annotation: name of the annotation; its two caption orders share it, and a bootstrap draws
            them together.
        subset: image ids among which "R_subset@K" ranks too, apart from the reference.
        concept: noun phrase for what the reference and the targets show alike, for the caption
            policy "concept"; empty where a data set has none.
        more_references: image ids of the references beside the first one.
        wrong: ids of images that a person judged to be wrong, for "wrong@K"; those outside the
            gallery are ignored. All other images that are no targets count as wrong in ranks alone.
    """

    id: str
    reference: str
    captions: tuple[str, ...]
    targets: tuple[str, ...]
    category: str
    annotation: str
    subset: tuple[str, ...] = ()
    concept: str = ""
    more_references: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All references, the first one first."""
        return (self.reference, *self.more_references)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Queries under one protocol.

    Attributes:
        protocol: the rules behind the numbers.
        galleries: image ids of each category's gallery.
        queries: all queries; each names its category.
        skipped: number of queries that were lost with missing images.
    """

    protocol: Protocol
    galleries: Mapping[str, tuple[str, ...]]
    queries: tuple[Query, ...]
    skipped: int = 0

    def image_ids(self) -> dict[str, None]:
        """Return the ids of all images needed, each once, in a fixed order."""
        ids = dict.fromkeys(i for gallery in self.galleries.values() for i in gallery)
        return ids | dict.fromkeys(i for query in self.queries for i in query.references)

    def conditions(self) -> dict[str, str | int]:
        """Return digests of gallery and queries, which two results must share to be compared."""
        queries = [
            (q.id, q.reference, q.captions, q.targets, q.subset)
            # Queries without these keep the digests that earlier versions stored.
            + ((q.more_references, q.wrong) if q.more_references or q.wrong else ())
            for q in self.queries
        ]
        return {
            "version": self.protocol.version,
            "gallery": digest_of(sorted((c, sorted(ids)) for c, ids in self.galleries.items())),
            "queries": digest_of(queries),
        }

    def without(self, missing: Set[str]) -> "Evaluation":
        """Return the evaluation without some images and the queries that are lost with them."""
        galleries = {
            name: tuple(i for i in gallery if i not in missing)
            for name, gallery in self.galleries.items()
        }
        queries = tuple(
            query
            for query in self.queries
            if missing.isdisjoint(query.references)
            and (not query.targets or not set(query.targets) <= missing)
        )
        lost = len(self.queries) - len(queries)
        return dataclasses.replace(
            self, galleries=galleries, queries=queries, skipped=self.skipped + lost
        )

    def with_concepts(self) -> "Evaluation":
        """Return the evaluation under the caption policy "concept", a protocol of its own.

        Raises:
            DataError: a query has no concept, or not one caption.
        """
        name = with_concept(self.protocol.name)
        for query in self.queries:
            if not query.concept.strip() or len(query.captions) != 1:
                raise DataError(f"{name}: query {query.id} has no shared concept to be named")
        queries = tuple(
            dataclasses.replace(q, captions=(concept_caption(q.concept, q.captions[0]),))
            for q in self.queries
        )
        return dataclasses.replace(self, protocol=PROTOCOLS[name], queries=queries)


def digest_of(value: Any) -> str:
    """Return a digest of JSON values, 16 hexadecimal digits, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class TripletSource(Interface):
    """A source of training items. Drawing is a pure function of its arguments.

    Attributes:
        unit: noun for the things that items are made from: "triplets", or "images" where the
            target and the text of each are drawn anew every epoch.
        stored_as: the word under which a prepared data set records this class.
    """

    unit: ClassVar[str]
    stored_as: ClassVar[str]

    @classmethod
    def from_items(cls, items: Iterable[Triplet]) -> "TripletSource":
        """Build the source from what `items` returns."""

    def __len__(self) -> int:
        """Return the number of items of an epoch."""

    def draw(self, seed: int, epoch: int, item: int) -> Triplet:
        """Return an item of an epoch."""

    def items(self) -> Iterable[Triplet]:
        """Return the triplets that the source holds; a target still to be drawn is empty."""

    def image_ids(self) -> Iterable[str]:
        """Return the ids of all images that can be drawn."""

    def longest_texts(self) -> Iterable[tuple[str, ...]]:
        """Return texts that include the one with the most tokens among all that can be drawn."""

    def without(self, missing: Set[str]) -> "TripletSource":
        """Return the source without some images and the items that need them."""


@dataclasses.dataclass(frozen=True)
class FixedTriplets:
    """Annotated triplets, which are the same in every epoch."""

    triplets: tuple[Triplet, ...]

    unit: ClassVar[str] = "triplets"
    stored_as: ClassVar[str] = "triplets"

    @classmethod
    def from_items(cls, items: Iterable[Triplet]) -> "FixedTriplets":
        """Return a source of these triplets."""
        return cls(tuple(items))

    def __len__(self) -> int:
        """Return the number of items of an epoch."""
        return len(self.triplets)

    def draw(self, seed: int, epoch: int, item: int) -> Triplet:
        """Return an item, the same in every epoch."""
        return self.triplets[item]

    def items(self) -> Iterable[Triplet]:
        """Return the triplets."""
        return self.triplets

    def image_ids(self) -> Iterable[str]:
        """Return the ids of all images in the triplets."""
        return dict.fromkeys(i for t in self.triplets for i in (t.reference, t.target))

    def longest_texts(self) -> Iterable[tuple[str, ...]]:
        """Return all texts."""
        return {t.captions for t in self.triplets}

    def without(self, missing: Set[str]) -> "FixedTriplets":
        """Return the triplets that have neither image among the missing ones."""
        return FixedTriplets(
            tuple(
                t for t in self.triplets if t.reference not in missing and t.target not in missing
            )
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """The content of a data set, as its reader returns it.

    Attributes:
        name: value of ``config.data.name``.
        layout: description of the layout that was recognized, for people.
        image_directory: the folder that all images lie in; no link may lead out of it.
        train: the training items.
        evaluations: evaluations by split: "val" is measured during training and chooses the best
            checkpoint; "test", which may be absent, is measured once for that checkpoint.
        vocabulary_captions: raw captions in the order in which their words are numbered.
        images: all images that anything refers to, unlabelled queries included, by id.
        unlabelled: by split, queries whose answers only a server knows; see `for_submission`.
        extra_special: words that follow the special tokens in the vocabulary.
        facts: other facts to be printed and stored with results, such as oracle ceilings.
        skipped_images: ids of images that were unusable and left out when the data were prepared.
        read_as: "released" or "upright", the way images are read unless the config says otherwise;
            see `ImagePreprocessing`.
        prepared: the images as an `images.sources.ImageSource` if they are records of a prepared
            data set; None: they are files.
        searched: folders that were searched for images that are named without a folder.
        near_names: ids of images that are taken from files with near names, see
            `images.near_names`.
    """

    name: str
    layout: str
    image_directory: str
    train: TripletSource
    evaluations: Mapping[str, tuple[Evaluation, ...]]
    vocabulary_captions: tuple[str, ...]
    images: Mapping[str, Image] = dataclasses.field(default_factory=dict)
    unlabelled: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    extra_special: tuple[str, ...] = ()
    facts: Mapping[str, object] = dataclasses.field(default_factory=dict)
    skipped_images: tuple[str, ...] = ()
    read_as: str = RELEASED
    prepared: Any = None
    searched: tuple[str, ...] = ()
    near_names: tuple[str, ...] = ()

    def image_ids(self) -> dict[str, None]:
        """Return the ids of all images that training and evaluation need, each once."""
        ids = dict.fromkeys(self.train.image_ids())
        for evaluations in self.evaluations.values():
            for evaluation in evaluations:
                ids |= evaluation.image_ids()
        return ids

    def all_image_ids(self) -> dict[str, None]:
        """Return the ids of all images that anything refers to, each once."""
        ids = self.image_ids()
        for evaluation in self.unlabelled.values():
            ids |= evaluation.image_ids()
        return ids

    def with_images(self, images: Mapping[str, Image]) -> "Records":
        """Return the records with other images."""
        return dataclasses.replace(self, images=images)

    def for_evaluation(self) -> "Records":
        """Return the records without training items and the images that only they need."""
        return dataclasses.replace(self, train=FixedTriplets(())).with_needed_images()

    def for_submission(self, split: str) -> "Records":
        """Return records of only the unlabelled queries of a split and the images that they need.

        Raises:
            ValueError: there is no such split; names the splits that there are.
        """
        if split not in self.unlabelled:
            known = ", ".join(self.unlabelled) or "none"
            raise ValueError(f"{self.name} has no unlabelled split {split!r}; it has {known}")
        return dataclasses.replace(
            self, train=FixedTriplets(()), evaluations={split: (self.unlabelled[split],)}
        ).with_needed_images()

    def with_concepts(self) -> "Records":
        """Return the records with all queries under the caption policy "concept".

        Raises:
            DataError: a query has no concept, or not one caption.
        """
        return dataclasses.replace(
            self,
            evaluations={
                split: tuple(e.with_concepts() for e in evaluations)
                for split, evaluations in self.evaluations.items()
            },
            unlabelled={split: e.with_concepts() for split, e in self.unlabelled.items()},
        )

    def with_needed_images(self) -> "Records":
        """Return the records with the images of training and evaluation, and no others."""
        return self.with_images({i: self.images[i] for i in self.image_ids()})

    def without(self, missing: Set[str]) -> "Records":
        """Return the records without some images and everything that needs them."""
        return dataclasses.replace(
            self,
            images={i: image for i, image in self.images.items() if i not in missing},
            train=self.train.without(missing),
            evaluations={
                split: tuple(e.without(missing) for e in evaluations)
                for split, evaluations in self.evaluations.items()
            },
            unlabelled={split: e.without(missing) for split, e in self.unlabelled.items()},
        )
