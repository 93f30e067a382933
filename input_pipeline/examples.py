"""The examples of a prepared data set: their fields, and reading them from ArrayRecord files."""

from collections.abc import Iterator, Sequence
from typing import Any

from cmap_jax.files import check_regular_files
from input_pipeline import storage
from input_pipeline.readers.annotations import shown
from input_pipeline.records import DataError

# TFDS has one set of fields for all splits: an image's example fills the first four, and that of a
# query or a training triplet the others. A field has a type and a description that users see.
TEXT, TEXTS, BYTES, INTEGER = "text", "list of texts", "bytes", "integer"
FIELDS = {
    "id": (TEXT, "Id of the image, or of the query, unique in its split; empty for a triplet."),
    "image": (BYTES, "JPEG or PNG, padded to a square and resized; tf.io.decode_image reads it."),
    "height": (INTEGER, "Height of the original image in pixels."),
    "width": (INTEGER, "Width of the original image in pixels."),
    "reference": (TEXT, "Id of the reference image."),
    "captions": (TEXTS, "One or two captions, in the order in which they are joined."),
    "targets": (TEXTS, "Ids of the correct images; none where the answers are not public."),
    "category": (TEXT, "Key of the gallery that is searched."),
    "annotation": (TEXT, "Id of the annotation; the two caption orders of an annotation share it."),
    "protocols": (TEXTS, "Names of the evaluation protocols that include this query."),
    "subset": (TEXTS, "Ids of the images among which R_subset@K ranks as well."),
    "more_references": (TEXTS, "Ids of the reference images beside the first one."),
    "wrong": (TEXTS, "Ids of the images that a person judged to be wrong."),
    "concept": (TEXT, "What the reference and the targets show alike; empty where nobody says."),
}
_EMPTY = {TEXT: "", TEXTS: (), BYTES: b"", INTEGER: 0}
_AT_ONCE = 1024  # records read in one call

# TFDS's description of the fields, and its keys for the name of a class.
_FEATURES = "features.json"
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")
_OWN_CLASSES = "tensorflow_datasets.core.features."


def example(**fields: Any) -> dict[str, Any]:
    """Return an example with its empty fields filled in."""
    return {name: fields.get(name, _EMPTY[kind]) for name, (kind, _) in FIELDS.items()}


class SerializedExamples:
    """The serialized examples of a split, read by position."""

    def __init__(self, source: Any, name: str):
        """Wrap what TFDS opened.

        Args:
            source: a data source of TFDS that gives serialized examples.
            name: folder and split, for messages.
        """
        self._source = source
        self._name = name

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._source)

    def read(self, positions: Sequence[int]) -> list[bytes]:
        """Return the examples at some positions, read in one call.

        Raises:
            DataError: a file is damaged or missing.
        """
        try:
            return list(self._source.__getitems__(list(positions)))
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            raise DataError(f"{self._name} cannot be read, build it again: {error}") from error


class StoredExamples:
    """The files of a prepared data set.

    Attributes:
        directory: the folder with the version's number, as `tfds build` wrote it.
        version: number of the stored form, such as "2.0.0".
        splits: names of the splits.
    """

    def __init__(self, directory: str):
        """Open the files.

        Raises:
            DataError: they are damaged, or no prepared data set at all.
            ValueError: one of them is a pipe or a device.
        """
        import tensorflow_datasets as tfds  # only here: seconds to load

        self.directory = directory
        check_regular_files(directory)
        _check_features(directory)
        try:
            self._builder = tfds.builder_from_directory(directory)
        except Exception as error:  # damaged files lead to errors of many kinds
            raise DataError(f"{directory}: no prepared data set: {error}") from error
        self.version = str(self._builder.info.version)
        self.splits = tuple(self._builder.info.splits)
        self._raw = tfds.decode.DeserializeMethod.RAW_BYTES

    def open(self, split: str) -> SerializedExamples:
        """Return the serialized examples of a split.

        Raises:
            DataError: they are not in ArrayRecord files, or cannot be read.
        """
        try:
            source = self._builder.as_data_source(split, deserialize_method=self._raw)
        except NotImplementedError as error:
            raise DataError(
                f"{self.directory}: not in ArrayRecord files, which alone are read by position; "
                "build it again without --file_format"
            ) from error
        except Exception as error:
            raise DataError(f"{self.directory}: {split} cannot be read: {error}") from error
        return SerializedExamples(source, f"{self.directory}: {split}")

    def examples(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the examples of a split, in their order."""
        records = self.open(split)
        for start in range(0, len(records), _AT_ONCE):
            yield from map(parse, records.read(range(start, len(records))[:_AT_ONCE]))


def _check_features(directory: str) -> None:
    """Refuse fields of other classes than TFDS's own: it would import, and so run, their modules.

    Raises:
        DataError: names the class.
        ValueError: a broken file.
    """
    file = storage.join(directory, _FEATURES)
    if not storage.exists(file):
        return
    for name in _class_names(storage.read_json(file)):
        if not str(name).startswith(_OWN_CLASSES):
            raise DataError(
                f"{file}: a field is of the class {shown(name)}, and not of {_OWN_CLASSES}*; build "
                "the data again"
            )


def _class_names(content: Any) -> Iterator[Any]:
    """Yield the names of classes in a description of fields, at any depth."""
    if isinstance(content, dict):
        yield from (content[key] for key in _CLASS_KEYS if isinstance(content.get(key), str))
    for value in content.values() if isinstance(content, dict) else content:
        if isinstance(value, dict | list):
            yield from _class_names(value)


def parse(record: bytes) -> dict[str, Any]:
    """Return the fields of a serialized example."""
    import tensorflow as tf

    features = tf.train.Example.FromString(record).features.feature
    fields = {}
    for name, (kind, _) in FIELDS.items():
        if name not in features:  # written before there was this field
            fields[name] = _EMPTY[kind]
            continue
        if kind == INTEGER:
            (fields[name],) = features[name].int64_list.value
            continue
        values = features[name].bytes_list.value
        if kind == TEXTS:
            fields[name] = tuple(value.decode() for value in values)
        else:
            fields[name] = values[0] if kind == BYTES else values[0].decode()
    return fields
