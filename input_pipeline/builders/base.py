"""The builder of every data set: from a reader's records to ArrayRecord files."""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cmap_jax import config_fields
from cmap_jax.files import expand
from cmap_jax.processing.image_files import MAX_SIDE
from cmap_jax.processing.images import READINGS, ImagePreprocessing
from cmap_jax.progress import track
from cmap_jax.remedies import spelled
from input_pipeline import digests
from input_pipeline.examples import BYTES, FIELDS, INTEGER, TEXT, TEXTS, example
from input_pipeline.images.check import leave_out_unusable
from input_pipeline.images.decoding import FileLoader
from input_pipeline.images.loading import PARALLEL_CALLS, FailedImages, pass_over
from input_pipeline.images.sources import FolderImages
from input_pipeline.prepared import (
    RELEASE_NOTES,
    VERSION,
    describe,
    is_prepared,
    query_splits,
)
from input_pipeline.prepared_images import IMAGES
from input_pipeline.readers.data_set import DataSet
from input_pipeline.reading import read_folder, read_rendered
from input_pipeline.records import DataError, Records

_AT_ONCE = 64  # images of a batch
_LEAST_SIDE = 32  # pixels, the least crop of a model

_FEATURES = {
    TEXT: lambda doc: tfds.features.Text(doc=doc),
    TEXTS: lambda doc: tfds.features.Sequence(tfds.features.Text(), doc=doc),
    BYTES: lambda doc: tfds.features.Scalar(np.object_, doc=doc),
    INTEGER: lambda doc: tfds.features.Scalar(np.int32, doc=doc),
}

# The arguments of `tfds build` for some of the config's fields.
_SPELLING = {
    "data.directory": "--manual_dir",
    "data.image_directory": """--config='{"name": "own", "image_directory": "{}"}'""",
    "data.missing_images=skip": """--config='{"name": "own", "missing_images": "skip"}'""",
    "data.near_names=accept": """--config='{"name": "own", "near_names": "accept"}'""",
}


@contextlib.contextmanager
def _remedies_of_tfds() -> Iterator[None]:
    """Rewrite the flags in errors about data as `tfds build` spells them."""
    try:
        yield
    except (DataError, FileNotFoundError) as error:
        raise type(error)(spelled(str(error), _SPELLING)) from error


@dataclasses.dataclass(eq=False, kw_only=True)
class ImageConfig(tfds.core.BuilderConfig):
    """The form in which images are stored, and the place they come from.

    Attributes:
        resize: side in pixels after padding to a square, as ``config.data.resize``.
        encoding: "jpeg", or "png", which loses nothing.
        quality: quality of JPEG, 1 to 100; PNG ignores it.
        read_as: "released" or "upright", as ``config.data.read_as``; None: by the data set.
        image_directory: the folder with the images; None: inside the annotations' folder.
        missing_images: "fail"; or "skip": leave out what cannot be used and all that needs it.
        near_names: "fail"; or "accept": take files with near names for missing images.
    """

    resize: int = 256
    encoding: str = "jpeg"
    quality: int = 95
    read_as: str | None = None
    image_directory: str | None = None
    missing_images: str = "fail"
    near_names: str = "fail"

    def __post_init__(self):
        """Refuse impossible settings before any work.

        Raises:
            ValueError: names the field and what it may be.
        """
        if self.image_directory:
            self.image_directory = expand(self.image_directory)
        allowed = {
            "encoding": ("jpeg", "png"),
            "missing_images": config_fields.FIELDS["data.missing_images"].choices,
            "near_names": config_fields.FIELDS["data.near_names"].choices,
            "read_as": (*READINGS, None),
        }
        for field, values in allowed.items():
            if getattr(self, field) not in values:
                raise ValueError(
                    f"{field} must be {' or '.join(map(str, values))}, not {getattr(self, field)!r}"
                )
        limits = {"quality": (1, 100), "resize": (_LEAST_SIDE, MAX_SIDE)}
        for field, (least, most) in limits.items():
            value = getattr(self, field)
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{field} must be {least} to {most}, not {value!r}")

    def preprocessing(self, records: Records) -> ImagePreprocessing:
        """Return how images are read and resized; the crop is made later, from stored images."""
        read_as = self.read_as or records.read_as
        return ImagePreprocessing(resize=self.resize, crop=_LEAST_SIDE, read_as=read_as)

    @property
    def encoding_in_words(self) -> str:
        """Return the encoding with its quality, such as "jpeg 95"."""
        return f"jpeg {self.quality}" if self.encoding == "jpeg" else self.encoding

    def encode(self, image: tf.Tensor) -> tf.Tensor:
        """Return an image, uint8 [R, R, 3], as the bytes of a file."""
        if self.encoding == "png":
            return tf.io.encode_png(image)
        return tf.io.encode_jpeg(image, quality=self.quality)


@dataclasses.dataclass(eq=False, kw_only=True)
class RenderedConfig(ImageConfig):
    """An `ImageConfig` of a data set that this library draws; it has the `Rendering`'s settings."""

    def __post_init__(self):
        """Refuse impossible settings before any work.

        Raises:
            ValueError: names the field.
        """
        super().__post_init__()
        if self.image_directory:
            raise ValueError("image_directory: rendered data keep their images with them")


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a data set of the registry; see `input_pipeline.prepared` for the form."""

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = RELEASE_NOTES
    DATA_SET: ClassVar[DataSet]  # `make_builder` sets it, and the fields that depend on it

    def __init__(self, *, file_format: Any = None, **kwargs: Any):
        """Write ArrayRecord files unless told otherwise: they are read by position."""
        super().__init__(file_format=file_format or "array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DATA_SET.description,
            features=tfds.features.FeaturesDict(
                {name: _FEATURES[kind](doc) for name, (kind, doc) in FIELDS.items()}
            ),
            homepage=self.DATA_SET.homepage,
            citation=self.DATA_SET.citation,
            metadata=tfds.core.MetadataDict(),
            # In the reader's order a position is known from the list of ids, without reading the
            # records; training has an order of its own anyway.
            disable_shuffling=True,
        )

    def _read(self, dl_manager: tfds.download.DownloadManager) -> Records:
        """Return the records of the raw data set."""
        rendering = self.DATA_SET.rendering
        if rendering is not None:
            settings = {name: getattr(self.builder_config, name) for name in rendering.settings}
            folder = "-".join([self.name, *map(str, settings.values())])
            directory = os.path.join(dl_manager.download_dir, folder)
            return read_rendered(self.DATA_SET, directory, settings)
        directory = str(dl_manager.manual_dir)
        if is_prepared(directory):
            raise DataError(f"{directory} is prepared already; name the raw folder")
        config = self.builder_config
        return read_folder(self.name, directory, config.image_directory, config.near_names)

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        with _remedies_of_tfds():
            whole = self._read(dl_manager)
            records, skipped, _ = leave_out_unusable(whole, self.builder_config.missing_images)
        failed = FailedImages(self.builder_config.missing_images)

        def usable() -> Records:
            # All in one call: a query is lost with the last of its targets, for whatever reasons.
            return whole.without({*skipped, *failed}) if failed else records

        # The images come first, so that the queries of those that fail can be left out.
        queries = {s: self._queries(usable, failed, s) for s in query_splits(records)}
        return {IMAGES: self._images(records, usable, failed, skipped), **queries}

    def _generate_examples(self) -> None:
        raise NotImplementedError("_split_generators gives the examples of each split")

    def _images(
        self,
        records: Records,
        usable: Callable[[], Records],
        failed: FailedImages,
        skipped: Sequence[str],
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the examples of the images; then fill in the dataset-wide facts."""
        config = self.builder_config
        ids = tuple(records.images)
        preprocessing = config.preprocessing(records)
        loader = FileLoader(FolderImages(records.images), preprocessing, failed)

        def encode(square: tf.Tensor, size: tf.Tensor) -> dict[str, tf.Tensor]:
            height, width = tf.unstack(size)
            return {"image": config.encode(square), "height": height, "width": width}

        def stage(plan: tf.data.Dataset, size: int) -> tf.data.Dataset:
            pictures = loader.sized_squares(plan, size).unbatch()
            return pictures.map(encode, num_parallel_calls=PARALLEL_CALLS).batch(size)

        # TFDS sorts what exceeds a gigabyte in a thousand parts of the keys' 128 bits, each in
        # memory: with 0, 1, 2, ... all would be in the first part.
        step = 2**128 // len(ids)
        number = 0
        image_digests = {}
        parts = pass_over(ids, _AT_ONCE, loader, stage)
        with _remedies_of_tfds():
            for positions, batch in track(parts, -(-len(ids) // _AT_ONCE), "encoding", "batches"):
                for row, position in enumerate(positions):
                    fields = {name: values[row] for name, values in batch.items()}
                    image_digests[ids[position]] = digests.of_file(io.BytesIO(fields["image"]))
                    yield number * step, example(id=ids[position], **fields)
                    number += 1
        self.info.metadata.update(
            describe(
                usable(),
                preprocessing=preprocessing,
                encoding=config.encoding_in_words,
                skipped=sorted({*skipped, *failed}),
                image_digests=image_digests,
            )
        )

    def _queries(
        self, usable: Callable[[], Records], failed: FailedImages, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the examples of a split of queries or triplets.

        Raises:
            DataError: there is none left, which TFDS, told of the split, does not allow.
        """
        examples = query_splits(usable()).get(split)
        if examples is None:
            raise DataError(
                f"nothing is left of the split {split!r} without the images that cannot be "
                f"decoded, {', '.join(failed)}: repair them, or remove what needs them from it"
            )
        yield from enumerate(examples)


def make_builder(data_set: DataSet) -> type[RecordsBuilder]:
    """Return the builder of a data set, registered with TFDS under the data set's name."""
    config = ImageConfig if data_set.rendering is None else _rendered_config(data_set)
    side = config(name="side").resize
    manual = (
        f"\nmanual_dir holds {data_set.manual_dir}.\n"
        f"`cmap doctor {data_set.name} DIRECTORY` says what is missing or wrong.\n"
    )
    fields = {
        "__doc__": data_set.description,
        "__module__": __name__,
        "name": data_set.name,
        "DATA_SET": data_set,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": None if data_set.rendering else manual,
        "BUILDER_CONFIGS": [
            config(name="jpeg", description=f"JPEG of quality 95, {side} pixels a side."),
            config(name="png", description=f"Without loss, {side} pixels a side.", encoding="png"),
        ],
        "builder_config_cls": config,
    }
    return type(_class_name(data_set), (RecordsBuilder,), fields)


def _rendered_config(data_set: DataSet) -> type[RenderedConfig]:
    """Return a config with a field for each setting of the data set's rendering."""
    defaults = {"resize": data_set.rendering.side, **data_set.rendering.settings}
    return dataclasses.make_dataclass(
        f"{_class_name(data_set)}Config",
        [(name, int, default) for name, default in defaults.items()],
        bases=(RenderedConfig,),
        eq=False,
        kw_only=True,
    )


def _class_name(data_set: DataSet) -> str:
    return "".join(word.capitalize() for word in data_set.name.split("_"))
