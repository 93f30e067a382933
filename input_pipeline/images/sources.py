"""Where the encoded bytes of an image come from: one interface, whatever lies under it.

source = open_images(records)  # a folder of files, or a prepared data set
encoded = source.read("B008BHCT58")
"""

from collections.abc import Mapping
from typing import Protocol as Interface

from input_pipeline import storage
from input_pipeline.records import Image, Records


class ImageSource(Interface):
    """The encoded bytes of images, by id."""

    def where(self, image: str) -> str:
        """Return the file, or the place in it, for messages."""

    def read(self, image: str) -> bytes:
        """Return an image's bytes.

        Raises:
            OSError: it cannot be read; names the place.
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


def open_images(records: Records) -> ImageSource:
    """Return where the images of a data set are."""
    return FolderImages(records.images) if records.prepared is None else records.prepared
