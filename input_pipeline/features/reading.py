"""Reading a folder of features, memory-mapped.

files = FeatureFiles("features")                        # refuses what is unfinished or damaged
files.read([files.rows["B008BHCT58"]])                  # {"high": [1, 2048]}
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import zlib
from collections.abc import Sequence

import numpy as np

from cmap_jax.files import check_regular_files, read_json
from cmap_jax.processing.images import ImagePreprocessing
from cmap_jax.progress import track
from input_pipeline.features.description import (
    DTYPES,
    IDS,
    MANIFEST,
    Description,
    checksum,
    read_manifest,
)
from input_pipeline.records import DataError, Records

_WORKERS = 4  # files whose checksums are computed at once
_SHOWN = 3  # examples in a message


class FeatureFiles:
    """A complete folder of features.

    Attributes:
        directory: path of the folder.
        description: all but the numbers.
        rows: the row of each image that has features, by id.
        identity: 8 hexadecimal digits that differ where any feature differs.
    """

    def __init__(self, directory: str):
        """Read the manifest and map the files; see `verify` for the checksums of their content.

        Raises:
            FileNotFoundError: no features in the folder.
            DataError: unfinished or damaged; says what, and the remedy.
            ValueError: one of the files is a pipe or a device.
        """
        self.directory = directory
        check_regular_files(directory)
        manifest = read_manifest(directory)
        ids = os.path.join(directory, IDS)
        try:
            files = manifest.pop("files")
            images = read_json(ids) if os.path.isfile(ids) else ()
            self.description = Description.from_dict(manifest, images)
            self._checksums = {name: entry["crc32"] for name, entry in files.items()}
            left_out = {image for entry in files.values() for image in entry["left_out"]}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._damaged(MANIFEST, f"{error}") from error
        names = self.description.file_names
        if self._checksums.keys() != set(names):
            raise DataError(
                f"config.data.features: {directory} is unfinished, with {len(self._checksums)} of "
                f"{len(names)} files: run its cmap extract again, which goes on there"
            )
        self.rows = {i: n for n, i in enumerate(self.description.images) if i not in left_out}
        # Sorted, since a file that was damaged and written anew is listed last.
        listed = json.dumps([manifest, files], sort_keys=True)
        self.identity = f"{zlib.crc32(listed.encode()):08x}"
        self._matrices = [self._map(number, name) for number, name in enumerate(names)]

    def verify(self) -> None:
        """Compare the checksums of all files, with progress.

        Raises:
            DataError: a file is damaged; names it.
        """
        names = self.description.file_names
        paths = [os.path.join(self.directory, name) for name in names]
        with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
            sums = track(pool.map(checksum, paths), len(paths), "checking", "feature files")
            for name, crc in zip(names, sums, strict=True):
                if crc != self._checksums[name]:
                    raise self._damaged(name, "its checksum differs from the manifest's")

    def read(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the features in some rows, by level, arrays [N, ...] of the stored dtype."""
        description = self.description
        levels = {
            level: np.empty((len(rows), math.prod(shape)), DTYPES[description.dtype])
            for level, shape in description.levels.items()
        }
        columns = description.columns()
        for n, row in enumerate(rows):
            number, position = divmod(int(row), description.rows_per_file)
            values = self._matrices[number][position]
            for level, part in columns.items():
                levels[level][n] = values[part]
        return {
            level: values.reshape(-1, *description.levels[level])
            for level, values in levels.items()
        }

    def check_fits(self, records: Records, preprocessing: ImagePreprocessing) -> None:
        """Refuse features of another data set, or of images that were read in another way.

        Raises:
            DataError: names what differs, with both values.
        """
        about = self.description
        theirs, ours = (
            {"name": name, **dataclasses.asdict(pictures)}
            for name, pictures in (
                (about.data_set, about.preprocessing),
                (records.name, preprocessing),
            )
        )
        for field, value in ours.items():
            if theirs[field] != value:
                raise DataError(
                    f"config.data.features: {self.directory} holds features for config.data."
                    f"{field}={theirs[field]}, not {value}; set it back, or extract into another "
                    "folder"
                )
        if about.prepared != (prepared := records.facts.get("prepared")):
            raise DataError(
                f"config.data.features: {self.directory} holds features of other pictures: "
                f"prepared as {about.prepared} there, as {prepared} now (None: the original ones); "
                "name the folder that they were extracted from with --config.data.directory"
            )

    def leave_out_missing(self, records: Records, policy: str) -> tuple[Records, tuple[str, ...]]:
        """Return the records without images that have no features, and the ids of these images.

        Args:
            records: the data set.
            policy: "fail" or "skip", the value of ``config.data.missing_images``.

        Raises:
            DataError: there are some, and the policy is "fail"; or there are no others.
        """
        missing = {i for i in records.images if i not in self.rows}
        if not missing:
            return records, records.skipped_images
        if policy == "fail" or len(missing) == len(records.images):
            remedy = "extract those of all images into another folder"
            if policy == "fail":
                remedy += ", or leave these out with --config.data.missing_images=skip"
            raise DataError(
                f"config.data.features: {self.directory} has no features of {len(missing)} of the "
                f"{len(records.images)} images that are needed, such as "
                f"{', '.join(sorted(missing)[:_SHOWN])}; {remedy}"
            )
        return records.without(missing), tuple(sorted(missing))

    def _map(self, number: int, name: str) -> np.ndarray:
        """Return a file's matrix, memory-mapped; NumPy's files do not know bfloat16 by name."""
        shape = (len(self.description.rows(number)), self.description.width)
        try:
            matrix = np.load(os.path.join(self.directory, name), mmap_mode="r")
            matrix = matrix.view(DTYPES[self.description.dtype])
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, f"{error}") from error
        if matrix.shape != shape:
            raise self._damaged(name, f"its shape is {matrix.shape}, not {shape}")
        return matrix

    def _damaged(self, name: str, reason: str) -> DataError:
        return DataError(
            f"config.data.features: {os.path.join(self.directory, name)} is damaged ({reason}): "
            "run its cmap extract again, which writes damaged files anew"
        )
