"""Where the encoded bytes of an image come from: one interface, whatever lies under it.

source = open_images(records)  # a folder of files, or a prepared data set
encoded = source.read("B008BHCT58")
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from typing import Protocol as Interface

from cmap_jax.processing.images import ImagePreprocessing
from input_pipeline import storage
from input_pipeline.records import Image, Records

if TYPE_CHECKING:  # seconds to load, and a reader of single images does not need it
    import tensorflow as tf


class ImageSource(Interface):
    """The encoded bytes of images, by id."""

    def where(self, image: str) -> str:
        """Return the file, or the place in it, for messages."""

    def read(self, image: str) -> bytes:
        """Return an image's bytes.

        Raises:
            OSError: it cannot be read; names the place.
        """

    def keys(self, images: Sequence[str]) -> list[str | bytes]:
        """Return for each image what `load` makes its bytes of: all at once, so this may read."""

    def load(self, key: "tf.Tensor") -> "tf.Tensor":
        """Return the bytes, scalar string, of a key, scalar string: in tf.data, for one image."""

    def square(self, key: "tf.Tensor", preprocessing: ImagePreprocessing) -> "tf.Tensor":
        """Return a key's image before any crop, uint8 [R, R, 3]: in tf.data, for one image."""

    def check(self, preprocessing: ImagePreprocessing) -> None:
        """Refuse preprocessing that the images do not allow.

        Raises:
            DataError: they have had other preprocessing already; names both.
        """


class FolderImages:
    """Images as files of their own, local or in a bucket."""

    def __init__(self, images: Mapping[str, Image]):
        """Take the images by id."""
        self._paths = {i: image.path for i, image in images.items()}

    def where(self, image: str) -> str:
        """Return the image's file."""
        return self._paths[image]

    def read(self, image: str) -> bytes:
        """Return the file's bytes."""
        return storage.read_bytes(self._paths[image])

    def keys(self, images: Sequence[str]) -> list[str | bytes]:
        """Return the files: many threads of tf.data read them."""
        return [os.fsencode(self._paths[i]) for i in images]

    def load(self, key: "tf.Tensor") -> "tf.Tensor":
        """Read the file."""
        import tensorflow as tf

        return tf.io.read_file(key)

    def square(self, key: "tf.Tensor", preprocessing: ImagePreprocessing) -> "tf.Tensor":
        """Decode, pad and resize as PIL does."""
        from input_pipeline import preprocess

        return preprocess.load_square(self.load(key), preprocessing)

    def check(self, preprocessing: ImagePreprocessing) -> None:
        """Allow any: the files are as they were found."""


def open_images(records: Records) -> ImageSource:
    """Return where the images of a data set are."""
    return FolderImages(records.images) if records.prepared is None else records.prepared
