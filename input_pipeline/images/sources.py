"""Sources of encoded images: one interface to image files and to prepared data sets.

source = open_images(records)
encoded = source.read("B008BHCT58")
"""

from collections.abc import Mapping
from typing import Protocol as Interface

from input_pipeline import storage
from input_pipeline.records import Image, Records


class ImageSource(Interface):
    """The encoded bytes of images, by id."""

    def where(self, image: str) -> str:
        """Return the file, or the position in it, for messages."""

    def read(self, image: str) -> bytes:
        """Return an image's bytes.

        Raises:
            OSError: it cannot be read; names the file.
        """


class FolderImages:
    """Images as files of their own, local or in a bucket."""

    def __init__(self, images: Mapping[str, Image]):
        """Remember the path of each image.

        Args:
            images: the images by id.
        """
        self._paths = {i: image.path for i, image in images.items()}

    def where(self, image: str) -> str:
        """Return the image's file."""
        return self._paths[image]

    def read(self, image: str) -> bytes:
        """Return the file's bytes."""
        return storage.read_bytes(self._paths[image])


def open_images(records: Records) -> ImageSource:
    """Return the source of a data set's images: its files, or its prepared records."""
    return FolderImages(records.images) if records.prepared is None else records.prepared
