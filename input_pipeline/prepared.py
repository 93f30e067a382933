"""Prepared data sets: images resized and encoded once, with the queries and facts beside them.

    tfds build fashion_iq/jpeg --imports=input_pipeline.builders --manual_dir=fashion-iq \
        --data_dir=prepared

writes ArrayRecord files below ``prepared/fashion_iq/jpeg/2.0.0``, a folder that
``config.data.directory`` may name in place of the raw one. Its splits are ``images``, ``train`` and
one for each split of queries; galleries and dataset-wide facts are in ``metadata.json``. Nothing is
shuffled: the list of ids in that file tells an image's position, and training meets the same items
in the same order as from the raw folder.

This module turns records into examples and back. `input_pipeline.builders` writes the examples, and
`input_pipeline.examples` knows their fields and reads them.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmap_jax.processing.images import READINGS, ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.examples import StoredExamples, example, parse
from input_pipeline.readers.annotations import check_keys
from input_pipeline.records import (
    DataError,
    Evaluation,
    FixedTriplets,
    Image,
    Query,
    Records,
    Triplet,
)
from input_pipeline.registry import find_data_set

# The version of the stored form. The first number grows when a reader of the previous form would
# misread the new one.
VERSION = "2.0.0"
RELEASE_NOTES = {
    "1.0.0": "The first form.",
    VERSION: "The pixels are PIL's, no longer TensorFlow's; how pictures were read is recorded.",
}
IMAGES, TRAIN = "images", "train"
INFO, METADATA = "dataset_info.json", "metadata.json"

_METADATA = {
    "data_set": str,
    "preprocessing": dict,
    "encoding": str,
    "layout": str,
    "training": str,
    "image_ids": list,
    "evaluations": dict,
    "unlabelled": dict,
    "captions": list,
    "extra_special": list,
    "facts": dict,
    "skipped_images": list,
    "vocabulary": list,
    "words": int,
}
_EVALUATION = {"protocol": str, "version": int, "skipped": int, "galleries": dict}
_LISTS_OF_TEXTS = ("image_ids", "captions", "extra_special", "skipped_images", "vocabulary")
_FIXED = ("resize", "pad_value", "read_as")  # the preprocessing's fields that preparing fixes
_SAME_FOR_ALL = {"fit": "pad", "resampling": "bilinear", "scaling": "fixed"}  # by the builders
_PROBES = 8  # records whose ids are compared with the list


def describe(
    records: Records, *, preprocessing: ImagePreprocessing, encoding: str, skipped: Sequence[str]
) -> dict[str, Any]:
    """Return the dataset-wide facts, for JSON: the parts of the records that no example holds.

    Args:
        records: the data set without its unusable images.
        preprocessing: how pictures were read, and the sizes; the crop is left to training.
        encoding: file format of the images and its quality, such as "jpeg 95" or "png".
        skipped: ids of the unusable images.
    """
    positions = {image: position for position, image in enumerate(records.images)}
    vocabulary = Vocabulary.build(records.vocabulary_captions, records.extra_special)

    def to_dict(evaluation: Evaluation) -> dict[str, Any]:
        return {
            "protocol": evaluation.protocol.name,
            "version": evaluation.protocol.version,
            "skipped": evaluation.skipped,
            "galleries": {
                category: [positions[i] for i in gallery]
                for category, gallery in evaluation.galleries.items()
            },
        }

    return {
        "data_set": records.name,
        "preprocessing": {k: getattr(preprocessing, k) for k in _FIXED},
        "encoding": encoding,
        "layout": records.layout,
        "training": records.train.stored_as,
        "image_ids": list(records.images),
        "evaluations": {
            split: [to_dict(e) for e in evaluations]
            for split, evaluations in records.evaluations.items()
        },
        "unlabelled": {split: to_dict(e) for split, e in records.unlabelled.items()},
        "captions": list(records.vocabulary_captions),
        "extra_special": list(records.extra_special),
        "facts": dict(records.facts),
        "skipped_images": list(skipped),
        "vocabulary": list(vocabulary.words),
        "words": len(vocabulary),
    }


def query_splits(records: Records) -> dict[str, Iterator[dict[str, Any]]]:
    """Return the examples of training and of every split of queries; empty splits are left out."""
    splits = {}
    if len(records.train):
        splits[TRAIN] = map(_triplet_example, records.train.items())
    labelled = records.evaluations.items()
    for split, evaluations in [*labelled, *((s, (e,)) for s, e in records.unlabelled.items())]:
        protocols: dict[Query, list[str]] = {}
        for evaluation in evaluations:
            for query in evaluation.queries:
                protocols.setdefault(query, []).append(evaluation.protocol.name)
        if protocols:
            splits[split] = (_query_example(*item) for item in protocols.items())
    return splits


def is_prepared(directory: str) -> bool:
    """Tell whether a folder holds a prepared data set."""
    return storage.exists(storage.join(directory, INFO))


def find_below(directory: str) -> list[str]:
    """Return the prepared data sets below a folder, as far down as `tfds build` puts them."""
    data_sets, folders = [], [directory]
    for _ in range(3):  # levels: data set, config, version
        folders = [storage.join(f, name) for f in folders for name in storage.names(f)]
        data_sets += [folder for folder in folders if is_prepared(folder)]
    return data_sets


def read(directory: str, name: str) -> Records:
    """Read a prepared data set.

    Args:
        directory: the folder with the version's number, as `tfds build` wrote it.
        name: an entry of `registry.DATA_SETS`, which the folder must hold.

    Raises:
        DataError: another data set, another version of the stored form, not in ArrayRecord files,
            or broken; names both what is there and what was expected.
    """
    file = storage.join(directory, METADATA)
    if not storage.exists(file):
        raise DataError(f"{directory}: prepared by something else: it has no {METADATA}")
    about = storage.read_json(file)
    check_keys(about, {"data_set": str}, file)
    if about["data_set"] != name:
        raise DataError(f"{directory} holds {about['data_set']}, prepared, and not {name}")
    stored = StoredExamples(directory)
    if stored.version.partition(".")[0] != VERSION.partition(".")[0]:
        raise DataError(
            f"{directory}: prepared in version {stored.version}, and this version of cmap_jax "
            f"reads version {VERSION}; build it again with tfds build. Version {VERSION}: "
            f"{RELEASE_NOTES.get(VERSION, '')}"
        )
    check_keys(about, _METADATA, file)
    try:
        for key in _LISTS_OF_TEXTS:
            if not all(isinstance(value, str) for value in about[key]):
                raise TypeError(f"{key}: not all of them are texts")
        records = _to_records(about, stored)
        if unknown := records.all_image_ids().keys() - records.images.keys():
            raise KeyError(f"image_ids: {min(unknown)} is needed and not among them")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: broken, build it again: {error!r}") from error
    return records


class PreparedImages:
    """The images of a prepared data set, by id; an `ImageSource`.

    Attributes:
        ids: the image ids in the order of their records.
        facts: version, encoding and preprocessing, which two uses of the data must share.
    """

    def __init__(self, stored: StoredExamples, ids: Sequence[str], facts: Mapping[str, Any]):
        """Open the records.

        Raises:
            DataError: the records are not those of the ids.
        """
        self.ids = tuple(ids)
        self.facts = facts
        self._records = stored.open(IMAGES)
        self._directory = stored.directory
        self._positions = {image: position for position, image in enumerate(self.ids)}
        count = len(self.ids)
        probes = random.Random(0).sample(range(count), min(count, _PROBES))
        fits = len(self._records) == count
        if not fits or [parse(record)["id"] for record in self._records.read(probes)] != [
            self.ids[position] for position in probes
        ]:
            raise DataError(
                f"{self._directory}: its {len(self._records)} image records are not those of the "
                f"{count} ids in {METADATA}; build it again"
            )

    def where(self, image: str) -> str:
        """Return the folder and the position of an image's record, for messages."""
        return f"{self._directory}: {IMAGES}[{self._positions[image]}]"

    def read(self, image: str) -> bytes:
        """Return the bytes of the prepared image.

        Raises:
            DataError: a damaged record.
        """
        (record,) = self.records([image])
        return parse(record)["image"]

    def records(self, images: Sequence[str]) -> list[bytes]:
        """Return the serialized records of some images, read in one call.

        Raises:
            DataError: a damaged record.
        """
        return self._records.read([self._positions[i] for i in images])

    def check(self, preprocessing: ImagePreprocessing) -> None:
        """Refuse a preprocessing that differs from the one the images were prepared with.

        Raises:
            DataError: names the field and both values.
        """
        for field in (*_FIXED, *_SAME_FOR_ALL):
            ours = _SAME_FOR_ALL.get(field) or self.facts[field]
            wanted = getattr(preprocessing, field)
            if ours != wanted:
                raise DataError(
                    f"{self._directory}: prepared with {field} {ours}, but the model takes images "
                    f"with {field} {wanted}; build it again with that, or use the raw images"
                )


def _to_records(about: Mapping[str, Any], stored: StoredExamples) -> Records:
    facts = {
        "version": stored.version,
        "encoding": about["encoding"],
        **{field: about["preprocessing"][field] for field in _FIXED},
    }
    if (read_as := about["preprocessing"]["read_as"]) not in READINGS:
        raise TypeError(f"preprocessing: read_as {read_as!r}")
    images = PreparedImages(stored, about["image_ids"], facts)
    splits = (*about["evaluations"], *about["unlabelled"])
    queries_of = {s: list(map(_query, stored.examples(s))) for s in splits if s in stored.splits}

    def image(position: int) -> str:
        if position < 0:  # Python would count from the end
            raise IndexError(f"no position: {position}")
        return images.ids[position]

    def evaluation(split: str, described: Mapping[str, Any]) -> Evaluation:
        check_keys(described, _EVALUATION, f"{storage.join(stored.directory, METADATA)}: {split}")
        protocol = PROTOCOLS.get(described["protocol"])
        if protocol is None or protocol.version != described["version"]:
            raise DataError(
                f"{stored.directory}: prepared for {described['protocol']}, version "
                f"{described['version']}, which this version of cmap_jax does not have; build it "
                "again"
            )
        galleries = {
            category: tuple(map(image, positions))
            for category, positions in described["galleries"].items()
        }
        queries = tuple(
            q for q, protocols in queries_of.get(split, ()) if protocol.name in protocols
        )
        return Evaluation(protocol, galleries, queries, described["skipped"])

    # A data set without training items has a source of its own class or an empty, fixed one.
    classes = (FixedTriplets, find_data_set(about["data_set"]).training)
    sources = {source.stored_as: source for source in classes}
    train = [
        Triplet(e["reference"], "".join(e["targets"]), e["captions"], e["category"])
        for e in (stored.examples(TRAIN) if TRAIN in stored.splits else ())
    ]
    return Records(
        name=about["data_set"],
        layout=f"prepared as {about['encoding']} from {about['layout']}",
        image_directory=stored.directory,
        train=sources[about["training"]].from_items(train),
        evaluations={
            split: tuple(evaluation(split, described) for described in evaluations)
            for split, evaluations in about["evaluations"].items()
        },
        unlabelled={split: evaluation(split, d) for split, d in about["unlabelled"].items()},
        vocabulary_captions=tuple(about["captions"]),
        images={image: Image(image, images.where(image)) for image in images.ids},
        extra_special=tuple(about["extra_special"]),
        facts={**about["facts"], "prepared": facts},
        skipped_images=tuple(about["skipped_images"]),
        read_as=read_as,
        prepared=images,
    )


def _triplet_example(triplet: Triplet) -> dict[str, Any]:
    return example(
        reference=triplet.reference,
        captions=triplet.captions,
        targets=(triplet.target,) if triplet.target else (),
        category=triplet.category,
    )


def _query_example(query: Query, protocols: Sequence[str]) -> dict[str, Any]:
    return example(**dataclasses.asdict(query), protocols=tuple(protocols))


def _query(fields: Mapping[str, Any]) -> tuple[Query, tuple[str, ...]]:
    names = [field.name for field in dataclasses.fields(Query)]
    return Query(**{name: fields[name] for name in names}), fields["protocols"]
