"""The form of a folder of features, which its writer and its reader share.

FOLDER/manifest.json    the description, and the checksum of each file
       images.json      the ids of the images, in the order of their rows
       00000.npy, ...   matrices with a row an image, in which the levels stand side by side

A matrix of bfloat16 is stored as NumPy's files do it, without the name of its dtype.
"""

import dataclasses
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from cmap_jax.files import read_json
from cmap_jax.processing.images import ImagePreprocessing
from input_pipeline.records import DataError

MANIFEST, IDS = "manifest.json", "images.json"
DTYPES: Mapping[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
# Increased when code that reads the old form would misread the new one, and with the next line.
_FORMAT = 1
_MOST_BYTES, _MOST_ROWS = 1 << 27, 1024  # the size of a file: the work that a kill may lose
_BLOCK = 1 << 22  # bytes that are read at once for a checksum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """All that is known of features before they are computed.

    Attributes:
        encoder: facts of the encoder, JSON values that only those who run it understand.
        preprocessing: how the images were read, resized and cropped, at their centre.
        levels: shape of an image's features, by level.
        dtype: a key of `DTYPES`.
        data_set: value of ``config.data.name``.
        prepared: facts of the prepared data set that was read; None: the original images.
        images: ids of the images, in the order of their rows.
    """

    encoder: Mapping[str, Any]
    preprocessing: ImagePreprocessing
    levels: Mapping[str, tuple[int, ...]]
    dtype: str
    data_set: str
    prepared: Mapping[str, Any] | None
    images: tuple[str, ...]

    @property
    def width(self) -> int:
        """Numbers of an image, over all levels."""
        return sum(map(math.prod, self.levels.values()))

    @property
    def image_bytes(self) -> int:
        """Bytes of an image, over all levels."""
        return self.width * DTYPES[self.dtype].itemsize

    @property
    def rows_per_file(self) -> int:
        """Images of a file; the last one may have fewer."""
        return max(1, min(_MOST_ROWS, _MOST_BYTES // self.image_bytes))

    @property
    def file_names(self) -> list[str]:
        """Names of the files that hold all images."""
        count = -(-len(self.images) // self.rows_per_file)
        return [f"{number:05}.npy" for number in range(count)]

    def rows(self, number: int) -> range:
        """Return the positions in `images` of the rows of a file, which is given by its number."""
        start = number * self.rows_per_file
        return range(start, min(start + self.rows_per_file, len(self.images)))

    def columns(self) -> dict[str, slice]:
        """Return the columns of each level in a matrix."""
        columns, start = {}, 0
        for level, shape in self.levels.items():
            columns[level] = slice(start, start + math.prod(shape))
            start = columns[level].stop
        return columns

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's content without the files, JSON values; of the ids a checksum."""
        return {
            "format": _FORMAT,
            "data_set": self.data_set,
            "prepared": None if self.prepared is None else dict(self.prepared),
            "preprocessing": self.preprocessing.to_dict(),
            "encoder": json.loads(json.dumps(dict(self.encoder))),
            "levels": {level: list(shape) for level, shape in self.levels.items()},
            "dtype": self.dtype,
            "images": len(self.images),
            "images_crc32": _ids_checksum(self.images),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], images: Sequence[str]) -> "Description":
        """Invert `to_dict`.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: fields are missing or broken, or the
                ids are others.
        """
        if fields["dtype"] not in DTYPES:
            raise ValueError(f"no dtype {fields['dtype']!r}")
        if _ids_checksum(images) != fields["images_crc32"]:
            raise ValueError(f"{IDS} is missing or holds other ids")
        return cls(
            encoder=fields["encoder"],
            preprocessing=ImagePreprocessing.from_dict(fields["preprocessing"]),
            levels={level: tuple(map(int, shape)) for level, shape in fields["levels"].items()},
            dtype=fields["dtype"],
            data_set=fields["data_set"],
            prepared=fields["prepared"],
            images=tuple(images),
        )


def read_manifest(directory: str) -> dict[str, Any]:
    """Return a manifest's content.

    Raises:
        FileNotFoundError: there is none.
        DataError: another form.
    """
    path = os.path.join(directory, MANIFEST)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"config.data.features: {directory} holds no features: it has no {MANIFEST}; write "
            "them with cmap extract, or read the images with --config.data.features="
        )
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(f"{path} has another form than this version of cmap_jax reads")
    return manifest


def checksum(path: str) -> int:
    """Return the CRC-32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _ids_checksum(images: Sequence[str]) -> int:
    return zlib.crc32(json.dumps(list(images)).encode())
