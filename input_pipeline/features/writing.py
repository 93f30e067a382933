"""Writing a folder of features, file by file, so that a writer can go on where one stopped.

writer = FeatureWriter("features", description)
for number in writer.unfinished():
    writer.write(number, {"high": array})
"""

import io
import os
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cmap_jax.config_fields import flatten
from cmap_jax.files import check_can_write, is_remote, write_bytes, write_json
from cmap_jax.temporaries import remove_abandoned
from input_pipeline.features.description import (
    DTYPES,
    IDS,
    MANIFEST,
    Description,
    checksum,
    read_manifest,
)


def check_destination(directory: str) -> None:
    """Refuse a folder that features cannot be written to, before they are computed.

    Raises:
        OSError: it cannot be written.
        ValueError: it is in a bucket, or holds something else.
    """
    if is_remote(directory):
        raise ValueError(f"{directory}: features are memory-mapped: name a local folder")
    check_can_write(directory)
    remove_abandoned(directory)
    if os.path.isdir(directory) and MANIFEST not in (names := os.listdir(directory)) and names:
        raise ValueError(f"{directory} holds other files; name a new folder")


class FeatureWriter:
    """Writes the files of a folder; each appears when it is complete, and is listed after that."""

    def __init__(self, directory: str, description: Description):
        """Look at the folder, and write nothing yet.

        Args:
            directory: a new folder, or one in which a writer with this description has stopped.
            description: all but the features.

        Raises:
            OSError: the folder cannot be written.
            ValueError: see `check_destination`; or it holds features of another description; names
                what differs.
        """
        check_destination(directory)
        self._directory = directory
        self._description = description
        self._files: dict[str, dict[str, Any]] = {}
        if os.path.exists(self._path(MANIFEST)):
            self._files = self._whole_files()

    def unfinished(self) -> list[int]:
        """Return the numbers of the files that are still to be written."""
        names = self._description.file_names
        return [number for number, name in enumerate(names) if name not in self._files]

    def begin(self) -> None:
        """Write the description, which makes the folder one that a later writer can go on in."""
        self._write_manifest()
        write_json(self._path(IDS), list(self._description.images))

    def write(
        self, number: int, features: Mapping[str, np.ndarray], left_out: Iterable[str] = ()
    ) -> None:
        """Write a file, after `begin`.

        Args:
            number: one of `unfinished`.
            features: by level, an array whose rows are the images of the file, in their order.
            left_out: ids of the images among them without features, whose rows may be anything.

        Raises:
            ValueError: features that are not finite, or beyond the dtype's range; names an image.
        """
        rows = self._description.rows(number)
        dtype = DTYPES[self._description.dtype]
        matrix = np.empty((len(rows), self._description.width), dtype)
        with np.errstate(over="ignore"):  # it is refused below
            for level, part in self._description.columns().items():
                matrix[:, part] = features[level].reshape(len(rows), -1)
        left_out = list(left_out)
        self._check_finite(matrix, rows, left_out)
        stream = io.BytesIO()
        np.save(stream, matrix)
        name, content = self._description.file_names[number], stream.getbuffer()
        write_bytes(self._path(name), content)
        self._files[name] = {"crc32": zlib.crc32(content), "left_out": left_out}
        self._write_manifest()

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _write_manifest(self) -> None:
        write_json(
            self._path(MANIFEST), {**self._description.to_dict(), "files": dict(self._files)}
        )

    def _whole_files(self) -> dict[str, dict[str, Any]]:
        """Return the entries of the files that are there, undamaged, with this description."""
        manifest = read_manifest(self._directory)
        files = manifest.pop("files", {})
        theirs, ours = flatten(manifest), flatten(self._description.to_dict())
        for field in dict.fromkeys([*ours, *theirs]):
            if theirs.get(field) != ours.get(field):
                raise ValueError(
                    f"{self._directory} holds features of another description, {field}: "
                    f"{theirs.get(field)} there, {ours.get(field)} now; name a new folder"
                )
        return {
            name: entry
            for name, entry in files.items()
            if os.path.isfile(self._path(name)) and checksum(self._path(name)) == entry["crc32"]
        }

    def _check_finite(self, matrix: np.ndarray, rows: range, left_out: list[str]) -> None:
        for row in np.flatnonzero(~np.isfinite(matrix.astype(np.float32)).all(axis=1)):
            image = self._description.images[rows[int(row)]]
            if image not in left_out:
                raise ValueError(
                    f"the features of image {image} are not finite in {self._description.dtype}; "
                    "take --dtype float32 or other weights"
                )
