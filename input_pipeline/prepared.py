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
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmap_jax.facts import IMAGES as IMAGE_BYTES
from cmap_jax.facts import DataFacts
from cmap_jax.processing.images import READINGS, ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from input_pipeline import digests, storage
from input_pipeline.examples import StoredExamples, example
from input_pipeline.prepared_images import FIXED, METADATA, PreparedImages
from input_pipeline.readers.annotations import check_keys
from input_pipeline.records import (
    DataError,
    Evaluation,
    FixedTriplets,
    Image,
    Query,
    Records,
    Triplet,
    digest_of,
)
from input_pipeline.registry import find_data_set

# The version of the stored form. The first number grows when a reader of the previous form would
# misread the new one.
VERSION = "2.0.0"
RELEASE_NOTES = {
    "1.0.0": "The first form.",
    VERSION: "The pixels are PIL's, no longer TensorFlow's; how pictures were read is recorded.",
}
TRAIN = "train"
INFO = "dataset_info.json"

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
# Digests, which earlier versions did not write: of each of the fields above, and of the content
# that the examples hold, `digests.of_records` and the images' bytes.
_DIGESTS, _CONTENT = "digests", "content_digests"
_EVALUATION = {"protocol": str, "version": int, "skipped": int, "galleries": dict}
_LISTS_OF_TEXTS = ("image_ids", "captions", "extra_special", "skipped_images", "vocabulary")


def describe(
    records: Records,
    *,
    preprocessing: ImagePreprocessing,
    encoding: str,
    skipped: Sequence[str],
    image_digests: Mapping[str, bytes],
) -> dict[str, Any]:
    """Return the dataset-wide facts, for JSON: the parts of the records that no example holds.

    Args:
        records: the data set without its unusable images.
        preprocessing: how pictures were read, and the sizes; the crop is left to training.
        encoding: file format of the images and its quality, such as "jpeg 95" or "png".
        skipped: ids of the unusable images.
        image_digests: `digests.of_file` of each encoded image, by id.
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

    about = {
        "data_set": records.name,
        "preprocessing": {k: getattr(preprocessing, k) for k in FIXED},
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
        _CONTENT: {
            **digests.of_records(records),
            IMAGE_BYTES: digests.of_images({i: image_digests[i] for i in records.images}),
        },
    }
    return about | {_DIGESTS: {field: digest_of(value) for field, value in about.items()}}


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
        _check_digests(about, records, file)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: broken, build it again: {error!r}") from error
    return records


def _check_digests(about: Mapping[str, Any], records: Records, file: str) -> None:
    """Refuse facts that were edited, and examples of other data; older facts have no digests.

    Raises:
        DataError: names the field of the facts, or the part of the data.
        TypeError, AttributeError: the digests are broken themselves.
    """
    for field, digest in about.get(_DIGESTS, {}).items():
        if digest_of(about.get(field)) != digest:
            raise DataError(
                f"{file}: {field!r} is not what was written there with the data; build them again"
            )
    content = DataFacts(digests=about.get(_CONTENT, {}))
    if others := content.differences(DataFacts(digests=digests.of_records(records))):
        raise DataError(
            f"{records.image_directory}: its records are those of other data: {others[0]}; build "
            "it again"
        )


def _to_records(about: Mapping[str, Any], stored: StoredExamples) -> Records:
    facts = {
        "version": stored.version,
        "encoding": about["encoding"],
        **{field: about["preprocessing"][field] for field in FIXED},
    }
    if (read_as := about["preprocessing"]["read_as"]) not in READINGS:
        raise TypeError(f"preprocessing: read_as {read_as!r}")
    digest = about.get(_CONTENT, {}).get(IMAGE_BYTES)
    images = PreparedImages(stored, about["image_ids"], facts, digest)
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
