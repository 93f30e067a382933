"""A prepared data set: images resized and encoded once, queries and facts beside them.

    tfds build fashion_iq/jpeg --imports=input_pipeline.builders --manual_dir=fashion-iq \
        --data_dir=prepared

writes ArrayRecord files below ``prepared/fashion_iq/jpeg/2.0.0``, a folder that
``config.data.directory`` may name in place of the raw one. It has the splits ``images``, ``train``
and those of the queries; galleries and dataset-wide facts are in ``metadata.json``. The order is
the reader's (nothing is shuffled), so an image's position is known from the list of ids there, and
training from here meets the same items in the same order as from the raw folder.

This module is the form: records to examples and back. `input_pipeline.builders` writes it.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cmap_jax.processing.images import READINGS, ImagePreprocessing
from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.protocols import PROTOCOLS
from input_pipeline import storage
from input_pipeline.annotations import check_keys
from input_pipeline.fashion200k import SampledPairs
from input_pipeline.records import (
    DataError,
    Evaluation,
    FixedTriplets,
    Image,
    Query,
    Records,
    Triplet,
)

# Raised with the form: the first number when a reader of the old one would misread the new one.
VERSION = "2.0.0"
RELEASE_NOTES = {
    "1.0.0": "The first form.",
    VERSION: "The pixels are PIL's, no longer TensorFlow's; how pictures were read is recorded.",
}
IMAGES, TRAIN = "images", "train"
INFO, METADATA = "dataset_info.json", "metadata.json"

# What an example may hold: its type, and what it is. Of an image only the first four are filled, of
# a query (or training triplet) only the others, as TFDS knows one form for all splits.
TEXT, TEXTS, BYTES, INTEGER = "text", "list of texts", "bytes", "integer"
FIELDS = {
    "id": (TEXT, "Of the image, or of the query among those of its split; empty for a triplet."),
    "image": (BYTES, "JPEG or PNG, padded to a square and resized; tf.io.decode_image reads it."),
    "height": (INTEGER, "Of the image as it was found, in pixels."),
    "width": (INTEGER, "Likewise."),
    "reference": (TEXT, "Id of the reference image."),
    "captions": (TEXTS, "One or two, in order."),
    "targets": (TEXTS, "Ids of the images that are right; none where the answers are not public."),
    "category": (TEXT, "Key of the gallery that is searched."),
    "annotation": (TEXT, "What a person wrote once: its two caption orders share it."),
    "protocols": (TEXTS, "Names of the protocols that ask this query."),
    "subset": (TEXTS, "Ids of the images among which R_subset@K ranks too."),
}
_EMPTY = {TEXT: "", TEXTS: (), BYTES: b"", INTEGER: 0}

# How training items are stored, and what makes items of them again.
_SOURCES = {
    "triplets": FixedTriplets,
    "captions": lambda items: SampledPairs({t.reference: t.captions[0] for t in items}),
}
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
_FIXED = ("resize", "pad_value", "read_as")  # of the preprocessing, by preparing
_PROBES = 8  # records whose ids are compared with the list
_AT_ONCE = 1024  # records read in one go


def describe(
    records: Records, *, preprocessing: ImagePreprocessing, encoding: str, skipped: Sequence[str]
) -> dict[str, Any]:
    """Return the dataset-wide facts, for JSON: all of the records that no example holds.

    Args:
        records: as read, without unusable images.
        preprocessing: how pictures were read, and the sizes; the crop is not fixed by preparing.
        encoding: such as "jpeg 95" or "png", for people.
        skipped: ids of the unusable images.
    """
    positions = {image: position for position, image in enumerate(records.images)}
    vocabulary = Vocabulary.build(records.vocabulary_captions, records.extra_special)

    def told(evaluation: Evaluation) -> dict[str, Any]:
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
        "training": "captions" if isinstance(records.train, SampledPairs) else "triplets",
        "image_ids": list(records.images),
        "evaluations": {
            split: [told(e) for e in evaluations]
            for split, evaluations in records.evaluations.items()
        },
        "unlabelled": {split: told(e) for split, e in records.unlabelled.items()},
        "captions": list(records.vocabulary_captions),
        "extra_special": list(records.extra_special),
        "facts": dict(records.facts),
        "skipped_images": list(skipped),
        "vocabulary": list(vocabulary.words),
        "words": len(vocabulary),
    }


def query_splits(records: Records) -> dict[str, Iterator[dict[str, Any]]]:
    """Return the examples of every split but the images'; empty splits are left out."""
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


def example(**fields: Any) -> dict[str, Any]:
    """Return an example with its empty fields filled in."""
    return {name: fields.get(name, _EMPTY[kind]) for name, (kind, _) in FIELDS.items()}


def is_prepared(directory: str) -> bool:
    """Tell whether a folder holds a prepared data set."""
    return storage.exists(storage.join(directory, INFO))


def find_below(directory: str) -> list[str]:
    """Return the prepared data sets below a folder, as far down as `tfds build` puts them."""
    found, folders = [], [directory]
    for _ in range(3):  # data set, config, version
        folders = [storage.join(f, name) for f in folders for name in storage.names(f)]
        found += [folder for folder in folders if is_prepared(folder)]
    return found


def read(directory: str, name: str) -> Records:
    """Read a prepared data set.

    Args:
        directory: the folder with the version's number, as `tfds build` wrote it.
        name: the data set's name.

    Raises:
        DataError: another data set, another version of this form, not in ArrayRecord, or broken;
            says what is there and what was expected.
    """
    file = storage.join(directory, METADATA)
    if not storage.exists(file):
        raise DataError(f"{directory}: prepared by something else: it has no {METADATA}")
    about = storage.read_json(file)
    check_keys(about, {"data_set": str}, file)
    if about["data_set"] != name:
        raise DataError(f"{directory} holds {about['data_set']}, prepared, and not {name}")
    stored = _Stored(directory)
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
        facts: what else must agree between two uses of the data: version, encoding, size.
    """

    def __init__(self, stored: "_Stored", ids: Sequence[str], facts: Mapping[str, Any]):
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
        if not fits or [_parse(record)["id"] for record in self._records.read(probes)] != [
            self.ids[position] for position in probes
        ]:
            raise DataError(
                f"{self._directory}: its {len(self._records)} image records are not those of the "
                f"{count} ids in {METADATA}; build it again"
            )

    def where(self, image: str) -> str:
        """Return the record's place."""
        return f"{self._directory}: {IMAGES}[{self._positions[image]}]"

    def read(self, image: str) -> bytes:
        """Return the bytes of the prepared image.

        Raises:
            DataError: a damaged record.
        """
        (record,) = self.records([image])
        return _parse(record)["image"]

    def records(self, images: Sequence[str]) -> list[bytes]:
        """Return the images' records, read at once.

        Raises:
            DataError: a damaged record.
        """
        return self._records.read([self._positions[i] for i in images])

    def check(self, preprocessing: ImagePreprocessing) -> None:
        """Refuse other preprocessing than the images have had.

        Raises:
            DataError: names both.
        """
        for field in _FIXED:
            ours, wanted = self.facts[field], getattr(preprocessing, field)
            if ours != wanted:
                raise DataError(
                    f"{self._directory}: prepared with {field} {ours}, but the model takes images "
                    f"with {field} {wanted}; build it again with that, or use the raw images"
                )


class _Stored:
    """The files of a prepared data set."""

    def __init__(self, directory: str):
        import tensorflow_datasets as tfds  # only here: seconds to load

        self.directory = directory
        try:
            self._builder = tfds.builder_from_directory(directory)
        except Exception as error:  # whatever damaged files lead it to
            raise DataError(f"{directory}: no prepared data set: {error}") from error
        self.version = str(self._builder.info.version)
        self.splits = tuple(self._builder.info.splits)
        self._raw = tfds.decode.DeserializeMethod.RAW_BYTES

    def open(self, split: str) -> "_Records":
        """Return the serialized examples of a split."""
        try:
            source = self._builder.as_data_source(split, deserialize_method=self._raw)
        except NotImplementedError as error:
            raise DataError(
                f"{self.directory}: not in ArrayRecord files, which alone are read by position; "
                "build it again without --file_format"
            ) from error
        except Exception as error:
            raise DataError(f"{self.directory}: {split} cannot be read: {error}") from error
        return _Records(source, f"{self.directory}: {split}")

    def examples(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the examples of a split, in their order."""
        records = self.open(split)
        for start in range(0, len(records), _AT_ONCE):
            yield from map(_parse, records.read(range(start, len(records))[:_AT_ONCE]))


class _Records:
    """Serialized examples, read by position."""

    def __init__(self, source: Any, name: str):
        self._source = source
        self._name = name

    def __len__(self) -> int:
        return len(self._source)

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Return some records, read at once.

        Raises:
            DataError: a file is damaged or missing.
        """
        try:
            return list(self._source.__getitems__(list(positions)))
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise DataError(f"{self._name} cannot be read, build it again: {error}") from error


def _to_records(about: Mapping[str, Any], stored: _Stored) -> Records:
    facts = {
        "version": stored.version,
        "encoding": about["encoding"],
        **{field: about["preprocessing"][field] for field in _FIXED},
    }
    if (read_as := about["preprocessing"]["read_as"]) not in READINGS:
        raise TypeError(f"preprocessing: read_as {read_as!r}")
    images = PreparedImages(stored, about["image_ids"], facts)
    splits = (*about["evaluations"], *about["unlabelled"])
    asked = {s: list(map(_query, stored.examples(s))) for s in splits if s in stored.splits}

    def image(position: int) -> str:
        if position < 0:  # from the end, for Python
            raise IndexError(f"no position: {position}")
        return images.ids[position]

    def evaluation(split: str, told: Mapping[str, Any]) -> Evaluation:
        check_keys(told, _EVALUATION, f"{storage.join(stored.directory, METADATA)}: {split}")
        protocol = PROTOCOLS.get(told["protocol"])
        if protocol is None or protocol.version != told["version"]:
            raise DataError(
                f"{stored.directory}: prepared for {told['protocol']}, version {told['version']}, "
                "which this version of cmap_jax does not have; build it again"
            )
        galleries = {
            category: tuple(map(image, positions))
            for category, positions in told["galleries"].items()
        }
        queries = tuple(q for q, protocols in asked.get(split, ()) if protocol.name in protocols)
        return Evaluation(protocol, galleries, queries, told["skipped"])

    train = [
        Triplet(e["reference"], "".join(e["targets"]), e["captions"], e["category"])
        for e in (stored.examples(TRAIN) if TRAIN in stored.splits else ())
    ]
    return Records(
        name=about["data_set"],
        layout=f"prepared as {about['encoding']} from {about['layout']}",
        image_directory=stored.directory,
        train=_SOURCES[about["training"]](tuple(train)),
        evaluations={
            split: tuple(evaluation(split, told) for told in evaluations)
            for split, evaluations in about["evaluations"].items()
        },
        unlabelled={split: evaluation(split, told) for split, told in about["unlabelled"].items()},
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


def _parse(record: bytes) -> dict[str, Any]:
    """Return an example's fields."""
    import tensorflow as tf

    features = tf.train.Example.FromString(record).features.feature
    fields = {}
    for name, (kind, _) in FIELDS.items():
        if kind == INTEGER:
            (fields[name],) = features[name].int64_list.value
            continue
        values = features[name].bytes_list.value
        if kind == TEXTS:
            fields[name] = tuple(value.decode() for value in values)
        else:
            fields[name] = values[0] if kind == BYTES else values[0].decode()
    return fields
